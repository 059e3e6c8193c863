/*
 * tally.c - what a mount has done and has now, beside how often each request came
 *
 * Like counters.c: relaxed atomics on words that nobody reads to decide anything.
 */
#include "tally.h"

static const char *const names[TALLY_WORDS] = {
	[TALLY_READ_SHARED] = "read_shared",
	[TALLY_READ_PRIVATE] = "read_private",
	[TALLY_WRITTEN] = "written",
	[TALLY_COPIED] = "copied",
	[TALLY_COPY_UPS] = "copy_ups",
	[TALLY_CLONES] = "clones",
	[TALLY_CLONE_NS] = "clone_ns",
	[TALLY_CLONE_MAX_NS] = "clone_max_ns",
	[TALLY_NODES] = "nodes",
};

const char *tally_name(enum tally_word word)
{
	return names[word];
}

void tally_clone(struct tally *t, uint64_t took_ns)
{
	_Atomic uint64_t *longest = &t->words[TALLY_CLONE_MAX_NS];
	uint64_t max = atomic_load_explicit(longest, memory_order_relaxed);

	tally_add(t, TALLY_CLONES, 1);
	tally_add(t, TALLY_CLONE_NS, took_ns);
	while (took_ns > max &&
	       !atomic_compare_exchange_weak_explicit(longest, &max, took_ns, memory_order_relaxed,
						      memory_order_relaxed))
		;
}
