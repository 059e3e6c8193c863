/*
 * nodes.h - what backs the opens of each node
 */
#ifndef COWFS_NODES_H
#define COWFS_NODES_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "ahead.h"
#include "holders.h"
#include "ledger.h"
#include "writeback.h"

enum node_kind {
	NODE_SHARED = 0,  /* a template's file: read-only, kept after the last release */
	NODE_PRIVATE = 1, /* the copy's own file */
};

/* How the kernel reads a file. */
enum node_reading {
	READ_CACHED = 0,      /* in pieces, from the channel, into pages of FUSE's own */
	READ_PASSTHROUGH = 1, /* by itself, from the backing file */
	READ_BYPASS = 2,      /* from the channel straight into the reader's memory; mmap: cached.
			       * For two nodes of one file, which only passthrough brings about. */
};

/* What a socket pair cannot do in the place of /dev/fuse; the tests bring their own. */
struct backing_ops {
	int (*open)(int dev_fd, int fd);	 /* a backing id > 0, or -errno */
	int (*close)(int dev_fd, int32_t id);	 /* 0 or -errno */
	bool (*knows)(int dev_fd, uint64_t nodeid); /* whether the kernel holds the node */
};
extern const struct backing_ops kernel_backing_ops;

/* One open backing file. Whoever holds a reference may use fd without any lock; the last one to
 * let go closes fd and id. */
struct backing {
	int fd;		/* never changes */
	int32_t id;	/* never changes; backing id, 0 when not passed through */
	uint8_t kind;	/* never changes; enum node_kind */
	bool bypass;	/* never changes; READ_BYPASS */
	uint32_t refs;	/* node_table.lock */
	uint8_t handle_len; /* never changes, like handle: see ledger.h */
	struct ledger_handle handle;
	/* Held over fsync(2), and until what it said is noted: the next one would find nothing. No other
	 * lock is held when it is taken. */
	pthread_mutex_t syncing;
	_Atomic int32_t *dying; /* node_table.lock; where the ledger notes that the id goes */
	struct stream stream; /* of its reads; see ahead.h */
	struct backing *next_dead;
};

/* A node that is or was backed. Every word is guarded by node_table.lock; what the next daemon needs
 * is written to the node's slot of the ledger before the lock is let go. */
struct node {
	uint64_t nodeid;
	uint32_t slot;	   /* never changes */
	struct node *next; /* in its bucket */
	struct backing *backing; /* NULL: nothing backs it now */
	uint32_t readers;
	uint32_t writers;
	/* Python has counted these opens, and the kernel has not been told. Should the daemon die now
	 * the kernel asks again. */
	uint32_t promised_readers;
	uint32_t promised_writers;
	bool revoked;	      /* the channel may not answer an OPEN of it by itself */
	bool forgotten;	      /* goes away with its last open */
	bool was_passthrough; /* FUSE's own cache of it may be stale: never FOPEN_KEEP_CACHE */
	bool mappable;	      /* a passthrough mapping may change the file with no descriptor left */
	bool kept;	      /* is in the LRU list: SHARED, not revoked, no opens */
	bool suspect;	      /* restored, and errors may be missing: see nodes_look_back() */
	bool charged;	      /* its backing is held for `charged_to`, who was the first to open it */
	bool gone;	      /* Python holds a descriptor of it for `gone_by`, who removed its name */
	uint32_t charged_to, gone_by;
	struct writeback writeback; /* for whoever has the node open, whatever backs it meanwhile */
	struct node *newer, *older;
};

struct node_table {
	pthread_mutex_t lock;
	struct node **buckets; /* lock */
	uint32_t mask;	       /* lock; number of buckets - 1 */
	uint32_t count;	       /* lock */
	struct node *newest, *oldest; /* lock; the kept nodes, in the order of their last release */
	uint32_t kept;	       /* lock */
	uint32_t max_kept;     /* never changes */
	struct holders holders; /* lock; of all that is open or gone, but for what is kept */
	const struct backing_ops *ops; /* never changes */
	struct ledger *ledger; /* never changes */
	int dev_fd;	       /* set once, before any node is attached */
	/* The mount that the kernel reads and writes private files by, by itself, which decides about
	 * access times; -1: the one that they were opened by. Set once, before any node is attached. */
	int private_mount_fd;
	/* Held over syncfs(2); no other lock is held when it is taken. */
	pthread_mutex_t looking_back;
	int witness_fd;	       /* looking_back; -1: none is needed any more */
};

/* What an OPEN or CREATE reply says. */
struct open_answer {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct node_state {
	enum node_kind kind;
	uint32_t readers;
	uint32_t writers;
	bool passthrough;
};

/* max_held: descriptors of files that are open or have no name, those that are kept among them. */
int nodes_init(struct node_table *t, uint32_t max_kept, uint32_t max_held,
	       const struct backing_ops *ops, struct ledger *ledger);
/* Take over what the ledger says of the daemon before: its open files are opened again, on the file
 * system of volume_fd, and what nobody needs any more is closed. Before any thread runs. Gives how
 * many open files cannot be opened again (EIO for whatever passthrough does not cover), or -ENOMEM,
 * -EMFILE. volume_fd is duplicated: nodes_look_back() says what for. */
int nodes_restore(struct node_table *t, int volume_fd);
/* Closes every backing. Nobody else may use the table any more. */
void nodes_destroy(struct node_table *t);

/* ---- called by Python; the promises are those of _channel.pyi ------------------------------- */

/* 1, 0 when nothing backs the node, -ENFILE. */
int nodes_open(struct node_table *t, uint64_t nodeid, bool writing, uint32_t uid);
/* Take back what nodes_open() or nodes_attach() has counted. */
void nodes_unopen(struct node_table *t, uint64_t nodeid, bool writing);
/* 0 or -errno, -ENFILE when this user holds enough; takes over fd in every case. */
int nodes_attach(struct node_table *t, uint64_t nodeid, int fd, enum node_kind kind,
		 enum node_reading reading, bool writing, uint32_t uid);
/* Whether one more descriptor may be held for this user; what is kept makes room. */
bool nodes_have_room(struct node_table *t, uint32_t uid);
/* Whether so many are held that it matters for whom. */
bool nodes_scarce(struct node_table *t);
/* 0, -ENFILE, -ENOMEM. */
int nodes_hold(struct node_table *t, uint64_t nodeid, uint32_t uid);
void nodes_let(struct node_table *t, uint64_t nodeid);
/* 1: done, fd is taken over. 0: nothing is open any more, -errno: not a node to switch; in both
 * cases fd stays the caller's. */
int nodes_switch(struct node_table *t, uint64_t nodeid, int fd);
bool nodes_revoke(struct node_table *t, uint64_t nodeid, struct node_state *out);
void nodes_mark_mappable(struct node_table *t, uint64_t nodeid);
bool nodes_is_volatile(struct node_table *t, uint64_t nodeid);
uint32_t nodes_writers(struct node_table *t, uint64_t nodeid);
/* A duplicate of the descriptor that backs the node, or -EBADF, -EMFILE. */
int nodes_backing_fd(struct node_table *t, uint64_t nodeid);
/* Whether the node is open, or kept, as a file of the template. */
bool nodes_is_shared(struct node_table *t, uint64_t nodeid);
void nodes_forget(struct node_table *t, uint64_t nodeid);

/* ---- called by the channel's threads ----------------------------------------------------------
 *
 * What changes a count gives a doubt, to be settled when the kernel has the reply (ledger.h). unique
 * is that of the request without WIRE_UNIQUE_RESEND. */

/* Count one reader of a node whose opens the channel may answer; false: relay the OPEN. */
bool nodes_repeat_open(struct node_table *t, uint64_t nodeid, uint64_t unique, uint32_t uid,
		       struct open_answer *out, struct ledger_doubt **doubt);
/* The reply to an OPEN that Python has counted is on its way; false: nothing backs the node. */
bool nodes_opened(struct node_table *t, uint64_t nodeid, bool writing, uint64_t unique,
		  struct open_answer *out, struct ledger_doubt **doubt);
/* The kernel did not take that reply. */
void nodes_not_opened(struct node_table *t, uint64_t nodeid, bool writing,
		      struct ledger_doubt *doubt);
/* One open less. A node that is not known is no error: after a failed reply both sides may
 * disagree for a moment. The doubt may be NULL. true: the last writer of a file that is not passed
 * through has left, and its descriptor with it unless readers are there. */
bool nodes_release(struct node_table *t, uint64_t nodeid, uint64_t fh, bool writing,
		   uint64_t unique, struct ledger_doubt **doubt);
/* The kernel has sent a request again. Of an OPEN: take back what it was counted as. Of a RELEASE:
 * true when it was counted already, and is only to be answered; then the doubt is to be settled. */
bool nodes_resent(struct node_table *t, uint64_t unique, struct ledger_doubt **doubt);
/* The backing of a node with a reference of the caller's own, or NULL. */
struct backing *nodes_borrow(struct node_table *t, uint64_t nodeid);
void nodes_return(struct node_table *t, struct backing *b);

/* To be called before a backing that was borrowed is synced: an error may have been told in the life of
 * the daemon before, and not noted. Waits for the disk, the first time after a restore. */
void nodes_look_back(struct node_table *t, uint64_t nodeid, const struct backing *b);
/* A sync of the node's backing, through this handle, has failed with this errno, or 0: what the handle has
 * to be told. Called with backing.syncing. */
int nodes_synced(struct node_table *t, uint64_t nodeid, uint64_t fh, int error);

#endif
