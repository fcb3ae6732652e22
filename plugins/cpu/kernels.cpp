// The kernels of one instruction set. Compiled once for each set, with KERNELS as its name.
#include "kernels.h"

#include "attention.h"
#include "encoder.h"
#include "products.h"
#include "screen.h"
#include "summary.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
#define JOINED_OF(a, b) a##b
#define JOINED(a, b) JOINED_OF(a, b)

const Kernels JOINED(kernels_, KERNELS) = {
    TEXT(KERNELS),         KERNELS::multiply,     KERNELS::quantise,       KERNELS::normalise,
    KERNELS::gate,         KERNELS::attend_self,  KERNELS::attend_cross,   KERNELS::attend_encoder,
    KERNELS::summarise,    KERNELS::copy_for_screen, KERNELS::screen,
};
