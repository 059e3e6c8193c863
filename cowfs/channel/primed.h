/*
 * primed.h - answers to LOOKUPs that have not come yet
 */
#ifndef COWFS_PRIMED_H
#define COWFS_PRIMED_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "wire.h"

struct primed_entry;

struct primed_table {
	pthread_mutex_t lock;
	struct primed_entry **buckets; /* lock; NULL until the first entry */
	uint32_t count;		       /* lock */
	struct primed_entry *newest, *oldest; /* lock; in the order in which they were added */
};

/* At most this many answers; the oldest goes when one more is added. */
#define MAX_PRIMED 16384u

/* Make an empty table, which has no memory yet. */
void primed_init(struct primed_table *t);

/* Free the table and what is in it. */
void primed_destroy(struct primed_table *t);

/* Keep an answer for (parent, name). false: there is no memory, or one is kept already. *evicted is the
 * node id of the answer that was given up for it, which nobody will be given any more, or 0. */
bool primed_add(struct primed_table *t, uint64_t parent, const char *name, size_t len,
		const struct fuse_entry_out *entry, uint64_t *evicted);

/* Make the answer for a file of inode number st_ino that nothing but Python will change: the kernel may
 * keep it for as long as it likes. */
void primed_describe(struct fuse_entry_out *entry, const struct stat *st);

/* Take the answer for (parent, name) out of the table. false: there is none. */
bool primed_take(struct primed_table *t, uint64_t parent, const char *name, size_t len,
		 struct fuse_entry_out *entry);

#endif
