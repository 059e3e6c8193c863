/*
 * tally.h - what a mount has done and has now, beside how often each request came
 */
#ifndef COWFS_TALLY_H
#define COWFS_TALLY_H

#include <stdatomic.h>
#include <stdint.h>

/* Versions read each other's: a word keeps its place and its meaning, and new ones come at the end. To a
 * version that does not know it a word is 0. */
enum tally_word {
	TALLY_READ_SHARED,  /* bytes of READs that were answered here from a template's file */
	TALLY_READ_PRIVATE, /* the same, from the copy's own file */
	TALLY_WRITTEN,	    /* bytes of WRITEs that were answered here */
	TALLY_COPIED,	    /* bytes of COPY_FILE_RANGE */
	TALLY_COPY_UPS,	    /* regular files that became private */
	TALLY_CLONES,	    /* clones that were made for that, also those that nobody came to need */
	TALLY_CLONE_NS,	    /* the time that they took together */
	TALLY_CLONE_MAX_NS, /* and the longest one */
	TALLY_NODES,	    /* nodes that Python has in its table now */
	TALLY_WORDS
};

#define TALLY_ROOM 64 /* words */

/* Written by many threads, each word by itself. */
struct tally {
	_Atomic uint64_t words[TALLY_ROOM];
};

/* What a word is called in Python. */
const char *tally_name(enum tally_word word);

static inline void tally_add(struct tally *t, enum tally_word word, uint64_t amount)
{
	atomic_fetch_add_explicit(&t->words[word], amount, memory_order_relaxed);
}

static inline void tally_set(struct tally *t, enum tally_word word, uint64_t amount)
{
	atomic_store_explicit(&t->words[word], amount, memory_order_relaxed);
}

/* Count a clone that was made. */
void tally_clone(struct tally *t, uint64_t took_ns);

_Static_assert(TALLY_WORDS <= TALLY_ROOM, "tally");

#endif
