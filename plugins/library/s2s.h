/* libs2s: decodes with the engine for a CPU of a bundle, without Python. Plain C.
 *
 * Errors: a function that fails returns NULL or -1, and s2s_last_error() says why in one sentence, for the calling thread.
 * Ownership: a model is the caller's, who gives it back with s2s_close, and so is a result, with s2s_free.
 * Threads: any number may use one model at a time; s2s_close when none does any more.
 * Letters: B sources, N outputs of each (num_return_sequences), T tokens of an output. */
#ifndef S2S_H
#define S2S_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define S2S_VERSION 1 /* of this interface; functions are added, and none is changed, within a version */

typedef struct S2SModel S2SModel;
typedef struct S2SResult S2SResult;

/* The version of the interface that the library has. */
int32_t s2s_version(void);

/* Why the last call of this thread failed. Valid until the next call of this thread. */
const char* s2s_last_error(void);

/* Opens the engine BUNDLE/engines/TARGET, made by `s2s build BUNDLE --target TARGET`, for "cpu-fp32" or "cpu-int8".
 * onnxruntime: the path of libonnxruntime.so, 1.24 or newer; NULL: where the system's loader finds it. The process keeps
 * the first that was loaded. threads: of one call, at least 1. */
S2SModel* s2s_open(const char* bundle, const char* target, const char* onnxruntime, int32_t threads);
void s2s_close(S2SModel* model);

/* Decodes B sources as one batch.
 * ids: the token ids of all sources, one source after another; lengths [B]: how many ids each has, at least 1.
 * options: a JSON object of generation options by generate()'s names, such as {"num_beams": 4}; NULL or "" for none.
 * What it leaves out is as the bundle's manifest says. An option that the library does not have is an error. */
S2SResult* s2s_generate(S2SModel* model, const int64_t* ids, const int32_t* lengths, int32_t n_sources,
                        const char* options);
void s2s_free(S2SResult* result);

/* Translates B texts, in UTF-8, as one batch. options: as of s2s_generate, and "source_lang" and "target_lang" where the
 * model has languages. For bundles whose tokenizer is built on sentencepiece; others are refused by name, as is a library
 * that was built without sentencepiece. */
S2SResult* s2s_translate(S2SModel* model, const char* const* texts, int32_t n_texts, const char* options);

/* The token ids of a text as a source: the only output of the result. options: "source_lang", "target_lang". */
S2SResult* s2s_encode(S2SModel* model, const char* text, const char* options);
/* The text of token ids, without special tokens: that of the only output of the result. */
S2SResult* s2s_decode(S2SModel* model, const int64_t* ids, int32_t n_ids);

/* N: outputs of each source, best first. */
int32_t s2s_n_outputs(const S2SResult* result);

/* The token ids of an output [T], with the decoder's prompt and the end token. They live as long as the result. Sets
 * length to T and score to the score that `s2s generate` gives; either may be NULL. NULL for an output that is not there. */
const int64_t* s2s_output(const S2SResult* result, int32_t source, int32_t output, int32_t* length, double* score);


/* The text of an output of s2s_translate or s2s_decode, in UTF-8. It lives as long as the result. NULL where there is none. */
const char* s2s_text(const S2SResult* result, int32_t source, int32_t output);

#ifdef __cplusplus
}
#endif
#endif
