// Fibers: stacks that one operating-system thread switches between by hand. host_cuda.h runs each CUDA thread on one.
//
// A switch costs a few nanoseconds with the assembly below (x86-64) and about half a microsecond with ucontext (other
// processors). AddressSanitizer tracks the running stack, so every switch is announced to it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace host_cuda {

#if defined(__x86_64__)
// Saves the callee-saved registers on the running stack, stores its pointer in *from and continues on `to`.
extern "C" __attribute__((visibility("hidden"))) void s2s_switch_stack(void** from, void* to);
asm(R"(
.text
.hidden s2s_switch_stack
.weak s2s_switch_stack
.type s2s_switch_stack,@function
s2s_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size s2s_switch_stack,.-s2s_switch_stack
)");
#endif

class Fiber {
 public:
  static constexpr size_t kStackBytes = 64 * 1024;

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber() { std::free(stack_); }

  // Arms the fiber so that the next `enter` starts `entry`, which must never return.
  void start(void (*entry)()) {
    if (stack_ == nullptr) stack_ = static_cast<char*>(std::aligned_alloc(64, kStackBytes));
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStackBytes);  // what the previous thread's frames left behind
    fake_stack_ = nullptr;
#endif
#if defined(__x86_64__)
    void** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64);
    *--top = nullptr;  // in place of a caller's return address, for the stack alignment that the ABI asks for at entry
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    pointer_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // From the scheduler into the fiber; returns at its next `leave`.
  void enter() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake;
    __sanitizer_start_switch_fiber(&fake, stack_, kStackBytes);
#endif
#if defined(__x86_64__)
    s2s_switch_stack(&scheduler_, pointer_);
#else
    swapcontext(&scheduler_context_, &context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  // From the fiber back into the scheduler. `for_good`: the fiber is not entered again before the next `start`.
  void leave(bool for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, scheduler_stack_, scheduler_bytes_);
#else
    (void)for_good;
#endif
#if defined(__x86_64__)
    s2s_switch_stack(&pointer_, scheduler_);
#else
    swapcontext(&context_, &scheduler_context_);
#endif
    arrived();
  }

  // To be called first thing in `entry`, and after every return into the fiber.
  void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_stack_, &scheduler_bytes_);
#endif
  }

 private:
  char* stack_ = nullptr;
#if defined(__x86_64__)
  void* pointer_ = nullptr;
  static inline void* scheduler_ = nullptr;
#else
  ucontext_t context_{};
  static inline ucontext_t scheduler_context_{};
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
  static inline const void* scheduler_stack_ = nullptr;
  static inline size_t scheduler_bytes_ = 0;
#endif
};

}  // namespace host_cuda
