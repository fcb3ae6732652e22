"""Speech to text: prompts, windows of 30 s, times. What `Session.generate` and `Session.transcribe` do with sound.

tokens      the special ids of a speech model, from the bundle
prompts     what the decoder is told: language, task, whether times are wanted, earlier text
windows     one window of sound: encode once, then detect, decode, align as often as needed
loop        window after window through long audio, segment by segment
hallucinations  text where nobody speaks
words       when each word was spoken
transcribe  all of it together, with what OpenAI's whisper calls the fallback
side_by_side  several audios, or the parts of one, in batches
live        sound that is still coming; agreement: which of its words are certain
activity    where somebody speaks
formats     a transcript as text, subtitles, tables or JSON
picture     its words over the waveform
"""
