/*
 * counters.c - how often each request came, and how long it took
 *
 * Knows nothing of what a request means. Lock-free: relaxed atomics on words that nobody reads
 * to decide anything.
 */
#include "counters.h"

#include <time.h>

uint64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void counters_came(struct counters *c, uint32_t opcode)
{
	struct counter *k = &c->by_opcode[opcode_slot(opcode)];
	atomic_fetch_add_explicit(&k->count, 1, memory_order_relaxed);
}

void counters_answer(struct counters *c, uint32_t opcode, bool failed, bool here)
{
	struct counter *k = &c->by_opcode[opcode_slot(opcode)];

	if (failed)
		atomic_fetch_add_explicit(&k->errors, 1, memory_order_relaxed);
	if (here)
		atomic_fetch_add_explicit(&k->answered_here, 1, memory_order_relaxed);
}

void counters_answered(struct counters *c, uint32_t opcode, uint64_t start_ns)
{
	struct counter *k = &c->by_opcode[opcode_slot(opcode)];
	uint64_t took = now_ns() - start_ns;
	uint64_t max = atomic_load_explicit(&k->max_ns, memory_order_relaxed);

	atomic_fetch_add_explicit(&k->total_ns, took, memory_order_relaxed);
	while (took > max && !atomic_compare_exchange_weak_explicit(&k->max_ns, &max, took,
								    memory_order_relaxed,
								    memory_order_relaxed))
		;
}
