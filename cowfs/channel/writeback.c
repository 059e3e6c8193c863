/*
 * writeback.c - errors of writing a file's pages back: each is told once to every open of it
 *
 * The kernel tells such an error once for each open file description (Documentation/core-api/errseq.rst
 * in Linux), and a backing has one for all its users: the first fsync(2) that fails takes the error
 * with it. So errors are counted here, and a handle is told when it knows of fewer than there were.
 *
 * What a handle knows it says by itself: the upper 16 bits are the count when it was opened. Only what
 * it was told since then is in memory, that is, nothing as long as no disk fails. If that is lost, with
 * the daemon or for want of memory, it is told again; no handle can be lost.
 *
 * It does not know nodes, descriptors or requests, and takes no lock.
 */
#include "writeback.h"

#include <stddef.h>
#include <stdlib.h>

/* The kernel counts requests by two. 48 bits of their number last for a century. */
#define UNIQUE_SHIFT 1
#define COUNT_AT 48
#define UNIQUE_MASK ((UINT64_C(1) << COUNT_AT) - 1)

struct told {
	uint64_t fh;
	uint16_t errors; /* that it knows of */
	struct told *next;
};

uint64_t writeback_handle(const struct writeback *w, uint64_t unique)
{
	return (uint64_t)w->errors << COUNT_AT | (unique >> UNIQUE_SHIFT & UNIQUE_MASK);
}

void writeback_failed(struct writeback *w, int error)
{
	w->errors++;
	w->error = (uint16_t)error;
}

/* The link that leads to the handle's entry, or to NULL. */
static struct told **find(struct writeback *w, uint64_t fh)
{
	struct told **link = &w->told;

	while (*link && (*link)->fh != fh)
		link = &(*link)->next;
	return link;
}

int writeback_tell(struct writeback *w, uint64_t fh)
{
	struct told *t = *find(w, fh);
	uint16_t known = t ? t->errors : (uint16_t)(fh >> COUNT_AT);

	if (known == w->errors)
		return 0;
	if (!t && (t = malloc(sizeof(*t)))) {
		*t = (struct told){.fh = fh, .next = w->told};
		w->told = t;
	}
	if (t)
		t->errors = w->errors;
	return w->error;
}

void writeback_released(struct writeback *w, uint64_t fh)
{
	struct told **link = find(w, fh);
	struct told *t = *link;

	if (t) {
		*link = t->next;
		free(t);
	}
}

void writeback_free(struct writeback *w)
{
	while (w->told) {
		struct told *t = w->told;
		w->told = t->next;
		free(t);
	}
}
