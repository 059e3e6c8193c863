/*
 * pending.h - requests that were relayed and not answered yet
 */
#ifndef COWFS_PENDING_H
#define COWFS_PENDING_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What completing a reply needs to know of its request. */
struct pending {
	uint64_t unique;
	uint64_t nodeid; /* of the request; for CREATE that is the directory */
	uint64_t start_ns;
	uint32_t opcode;
	bool writing; /* OPEN, CREATE: the access mode allows writing */
	struct pending *next;
};

struct pending_table {
	pthread_mutex_t lock;
	struct pending **buckets; /* lock */
	uint32_t mask;		  /* lock; number of buckets - 1 */
	struct pending *unused;	  /* lock; recycled entries */
	atomic_uint count;	  /* changed under lock, read without it: see pending_any() */
};

/* Make an empty table. 0 or -ENOMEM. */
int pending_init(struct pending_table *t);

/* Free the table and what is in it. One that was never initialised, all zero, is left alone. */
void pending_destroy(struct pending_table *t);

/* Remember a request before it is relayed. 0 or -ENOMEM. Everything but `next` is copied. */
int pending_add(struct pending_table *t, const struct pending *what);

/* Take the request with this unique out of the table. false: there is none. */
bool pending_take(struct pending_table *t, uint64_t unique, struct pending *out);

/* Take any request out. false: there is none left. */
bool pending_take_any(struct pending_table *t, struct pending *out);

/* start_ns of the oldest request, or 0 when there is none. It looks at every request. */
uint64_t pending_oldest(struct pending_table *t);

/* Whether a reply is expected at all. Takes no lock. A request that is being added by another thread may
 * not be seen yet, but the reply to a request that the asking thread has read always is. */
bool pending_any(struct pending_table *t);

#endif
