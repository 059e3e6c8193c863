/*
 * touch.h - changes of mode and owner that are made here
 */
#ifndef COWFS_TOUCH_H
#define COWFS_TOUCH_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "ledger.h"
#include "primed.h"
#include "stock.h"
#include "tally.h"
#include "wire.h"

#define TOUCH_MAX_DIRECTORIES 256
#define TOUCH_MAX_FILES 65536

/* The orders in which programs go through a directory. */
enum { TOUCH_BY_NAME, TOUCH_BY_LISTING, TOUCH_ORDERS };

struct touch_file;
struct touch_directory;

/* A file of the template that is open. What it is never changes. */
struct touch_source {
	uint64_t nodeid; /* 0: none */
	int fd;
	struct stat st;
	char path[PATH_MAX]; /* in the template */
};

/* A file that was copied up here, and Python does not know it yet. */
struct touched {
	uint64_t nodeid;
	bool unprimed; /* a primed answer about it was thrown away */
};

struct touch_table {
	/* Held during a whole change, reply included: while others hold it no change is under way.
	 * Recursive: Python holds it while it changes directories, and may take offers back then. */
	pthread_mutex_t lock;
	struct touch_file **buckets;		 /* lock; NULL until the first offer */
	struct touch_directory *newest, *oldest; /* lock */
	uint32_t directories, files;		 /* lock */
	int tree_fd, work_fd;			 /* lock; those of the last offer, the caller's */
	struct primed_table *primed;		 /* never changes */
	struct ledger *ledger;			 /* the caller's, set before the first offer */
	struct tally *tally;			 /* never changes; NULL: nothing is counted */

	/* The one that was opened last: the kernel asks for its capabilities before a change of owner. */
	struct touch_source source; /* lock */

	struct stock stock; /* of files to come */
	struct {
		uint64_t nodeid; /* that was copied up last */
		int order;	 /* TOUCH_ORDERS: none */
	} walk;			 /* lock */
	atomic_bool ahead;	 /* somebody goes ahead of the walk */

	pthread_mutex_t told_lock;
	struct touched *told;	      /* told_lock */
	uint32_t room;		      /* told_lock */
	_Atomic uint32_t told_count;  /* written with told_lock */
};

/* A directory whose files are offered. */
struct touch_offer {
	uint64_t nodeid;	 /* of the directory */
	int upper_fd;		 /* where the copy has it; O_PATH will do, here and below */
	int tree_fd, work_fd;	 /* the template, and a directory of the copy's volume: the same in
				  * every offer, and open as long as the table lives */
	const char *path;	 /* in the template; "" is its root */
	const char *listing;	 /* names in the order in which the copy lists them, a NUL after each */
	size_t listing_len;	 /* 0: not known */
};

void touch_init(struct touch_table *t, struct primed_table *primed);
void touch_destroy(struct touch_table *t);

/* ---- called by Python; the promises are those of _channel.pyi ------------------------------- */

/* How many files are offered now, or -errno. */
int touch_offer(struct touch_table *t, const struct touch_offer *offer);
/* The node, or every file of this directory, is not offered any more. */
void touch_withdraw(struct touch_table *t, uint64_t nodeid);
/* Gives the list, count long and to be freed, or NULL when it is empty, or stays for want of memory. */
struct touched *touch_take(struct touch_table *t, uint32_t *count);

/* ---- called with the lock --------------------------------------------------------------------- */

/* Whether the node may be changed here at any time. */
bool touch_is_offered(struct touch_table *t, uint64_t nodeid);
/* Whether this room can make such a change at all. */
bool touch_may(const struct fuse_setattr_in *in);
/* Make the change if the node is offered, and say what the file looks like then. false: Python has to
 * make it, and the node is not offered any more. */
bool touch_change(struct touch_table *t, uint64_t nodeid, const struct fuse_setattr_in *in,
		  struct stat *st);
/* Whether the node is offered, and has no such attribute. */
bool touch_lacks(struct touch_table *t, uint64_t nodeid, const char *attribute);

/* ---- called without the lock ------------------------------------------------------------------ */

/* Clone files that a walk is about to come to, unless somebody does it already. */
void touch_ahead(struct touch_table *t);

#endif
