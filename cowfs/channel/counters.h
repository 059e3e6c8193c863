/*
 * counters.h - how often each request came, and how long it took
 */
#ifndef COWFS_COUNTERS_H
#define COWFS_COUNTERS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "opcodes.h"

/* Written by many threads, each word by itself: no lock, and no promise that two words of one
 * counter belong to the same moment. */
struct counter {
	_Atomic uint64_t count;	 /* requests that came */
	_Atomic uint64_t errors; /* ... and were answered with an errno */
	_Atomic uint64_t answered_here;
	_Atomic uint64_t total_ns; /* from the read of the request to the write of its reply */
	_Atomic uint64_t max_ns;
};

struct counters {
	struct counter by_opcode[OPCODES];
};

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t now_ns(void);

/* Count a request that came. */
void counters_came(struct counters *c, uint32_t opcode);

/* Count a reply. To be called before it is written, so that a caller that has the reply finds it counted. */
void counters_answer(struct counters *c, uint32_t opcode, bool failed, bool here);

/* Count the time that a request took which came at start_ns, and whose reply was written just now. */
void counters_answered(struct counters *c, uint32_t opcode, uint64_t start_ns);

#endif
