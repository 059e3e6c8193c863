/*
 * holders.c - for whom descriptors are held, so that no user takes all of them
 *
 * A user may hold as many as are left for everybody else. So the first user who takes all that there is
 * to get has a half, the next one a quarter, and something is always left, with no number to be set. Only
 * root may take the rest.
 *
 * The kernel may not say who opens a file (FUSE_ALLOW_IDMAP), and to find out takes long. As long as
 * three quarters are left it does not matter: all of these are counted for one user without a name.
 *
 * This file counts. It does not know what is held, nor when it goes.
 */
#include "holders.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct holder {
	struct holder *next;
	uint32_t uid;
	uint32_t count; /* > 0 */
};

void holders_init(struct holders *h, uint32_t max)
{
	memset(h, 0, sizeof(*h));
	h->max = max;
}

void holders_destroy(struct holders *h)
{
	for (uint32_t i = 0; i < HOLDER_BUCKETS; i++) {
		while (h->buckets[i]) {
			struct holder *holder = h->buckets[i];
			h->buckets[i] = holder->next;
			free(holder);
		}
	}
}

/* The link that points to the user, or to the end of its bucket. */
static struct holder **find(struct holders *h, uint32_t uid)
{
	struct holder **link = &h->buckets[(uid ^ uid >> 8 ^ uid >> 16) % HOLDER_BUCKETS];

	while (*link && (*link)->uid != uid)
		link = &(*link)->next;
	return link;
}

bool holders_may(const struct holders *h, uint32_t uid)
{
	const struct holder *holder = *find((struct holders *)h, uid);
	uint32_t left = h->total < h->max ? h->max - h->total : 0;

	return uid == 0 ? left > 0 : left > (holder ? holder->count : 0);
}

bool holders_scarce(const struct holders *h)
{
	return h->total >= h->max / 4;
}

bool holders_add(struct holders *h, uint32_t uid)
{
	struct holder **link = find(h, uid);

	if (!*link) {
		*link = calloc(1, sizeof(**link));
		if (!*link)
			return false;
		(*link)->uid = uid;
	}
	(*link)->count++;
	h->total++;
	return true;
}

void holders_drop(struct holders *h, uint32_t uid)
{
	struct holder **link = find(h, uid);
	struct holder *holder = *link;

	h->total--;
	if (--holder->count == 0) {
		*link = holder->next;
		free(holder);
	}
}
