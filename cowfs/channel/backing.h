/*
 * backing.h - one open backing file: its references, its backing id, its file handle
 */
#ifndef COWFS_BACKING_H
#define COWFS_BACKING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "ahead.h"
#include "ledger.h"

enum node_kind {
	NODE_SHARED = 0,  /* a template's file: read-only, cached after the last release */
	NODE_PRIVATE = 1, /* the copy's own file */
};

/* What a socket pair cannot do in the place of /dev/fuse; the tests bring their own. */
struct backing_ops {
	int (*open)(int dev_fd, int fd);	 /* a backing id > 0, or -errno */
	int (*close)(int dev_fd, int32_t id);	 /* 0 or -errno */
	bool (*knows)(int dev_fd, uint64_t nodeid); /* whether the kernel holds the node */
};
extern const struct backing_ops kernel_backing_ops;

/* By what the kernel is told of backing files. */
struct backing_device {
	const struct backing_ops *ops; /* never changes */
	int dev_fd;	       /* set once, before any node is attached */
	/* The mount that the kernel reads and writes private files by, by itself, which decides about
	 * access times; -1: the one that they were opened by. Set once, before any node is attached. */
	int private_mount_fd;
};

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

/* Called with the lock. */
void backing_put_locked(struct backing *b, struct backing **dead);
/* Called without the lock. Closing an id while files are open through it does them no harm. */
void backing_free_all(const struct backing_device *device, struct backing *dead);

/* So that the next daemon can open the same file, whatever it is called then, or when it has no
 * name any more. */
void backing_note_handle(struct backing *b);
/* The file of a handle in the mount of mount_fd, or -1. */
int backing_open_handle(int mount_fd, uint8_t len, const struct ledger_handle *handle,
			bool writable);
/* A backing id, or -errno. */
int backing_register(const struct backing_device *device, const struct backing *b);

#endif
