/*
 * holders.h - for whom descriptors are held, so that no user takes all of them
 */
#ifndef COWFS_HOLDERS_H
#define COWFS_HOLDERS_H

#include <stdbool.h>
#include <stdint.h>

#define HOLDER_BUCKETS 256u

struct holder;

/* Every word is guarded by its owner's lock. */
struct holders {
	struct holder *buckets[HOLDER_BUCKETS]; /* those who hold any, by uid */
	uint32_t max;	/* how many there may be */
	uint32_t total; /* how many there are */
};

/* Nobody holds any, of max that there are. */
void holders_init(struct holders *h, uint32_t max);

/* Free what is noted of everybody. */
void holders_destroy(struct holders *h);

/* Whether one more may be held for this user. A user other than root may hold no more than are left for
 * all others. */
bool holders_may(const struct holders *h, uint32_t uid);

/* Whether few are left, so that it matters for whom one is held. */
bool holders_scarce(const struct holders *h);

/* Count one more that is held for this user. false: there is no memory to note it. */
bool holders_add(struct holders *h, uint32_t uid);

/* Count one less of those that were added for this user. */
void holders_drop(struct holders *h, uint32_t uid);

#endif
