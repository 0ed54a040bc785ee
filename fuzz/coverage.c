/* What the instrumented extensions call at each branch and comparison, handed on to libFuzzer.
 *
 * GCC marks branches with __sanitizer_cov_trace_pc, which libFuzzer does not take: here each becomes one of the 8-bit
 * counters that it does take. Comparisons go to its own functions, which the sanitizers' runtime would hide from the
 * extensions. Compiled by build.py, loaded before everything else, and told of libFuzzer by engine.py. */

#include <stddef.h>
#include <stdint.h>

enum { COUNTERS = 1 << 16 };

static uint8_t counters[COUNTERS];
static uintptr_t places[COUNTERS][2]; /* libFuzzer wants an address and a flag for each; nobody asks for them */

struct comparisons {
    void (*cmp1)(uint8_t, uint8_t);
    void (*cmp2)(uint16_t, uint16_t);
    void (*cmp4)(uint32_t, uint32_t);
    void (*cmp8)(uint64_t, uint64_t);
    void (*const_cmp1)(uint8_t, uint8_t);
    void (*const_cmp2)(uint16_t, uint16_t);
    void (*const_cmp4)(uint32_t, uint32_t);
    void (*const_cmp8)(uint64_t, uint64_t);
    void (*cases)(uint64_t, uint64_t *);
};

static struct comparisons to;

void coverage_attach(void (*take_counters)(uint8_t *, uint8_t *), void (*take_places)(uintptr_t *, uintptr_t *),
                     const struct comparisons *comparisons)
{
    take_counters(counters, counters + COUNTERS);
    take_places(places[0], places[COUNTERS]);
    to = *comparisons;
}

void __sanitizer_cov_trace_pc(void)
{
    counters[(uint64_t)(uintptr_t)__builtin_return_address(0) * 0x9e3779b97f4a7c15u >> 48]++;
}

void __sanitizer_cov_trace_cmp1(uint8_t a, uint8_t b) { if (to.cmp1) to.cmp1(a, b); }
void __sanitizer_cov_trace_cmp2(uint16_t a, uint16_t b) { if (to.cmp2) to.cmp2(a, b); }
void __sanitizer_cov_trace_cmp4(uint32_t a, uint32_t b) { if (to.cmp4) to.cmp4(a, b); }
void __sanitizer_cov_trace_cmp8(uint64_t a, uint64_t b) { if (to.cmp8) to.cmp8(a, b); }
void __sanitizer_cov_trace_const_cmp1(uint8_t a, uint8_t b) { if (to.const_cmp1) to.const_cmp1(a, b); }
void __sanitizer_cov_trace_const_cmp2(uint16_t a, uint16_t b) { if (to.const_cmp2) to.const_cmp2(a, b); }
void __sanitizer_cov_trace_const_cmp4(uint32_t a, uint32_t b) { if (to.const_cmp4) to.const_cmp4(a, b); }
void __sanitizer_cov_trace_const_cmp8(uint64_t a, uint64_t b) { if (to.const_cmp8) to.const_cmp8(a, b); }
void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases) { if (to.cases) to.cases(value, cases); }

/* Of numbers with a fraction libFuzzer makes nothing. */
void __sanitizer_cov_trace_cmpf(float a, float b) { (void)a, (void)b; }
void __sanitizer_cov_trace_cmpd(double a, double b) { (void)a, (void)b; }
