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
	int (*open)(int dev_fd, int fd);	    /* a backing id > 0, or -errno */
	int (*close)(int dev_fd, int32_t id);	    /* 0 or -errno */
	bool (*knows)(int dev_fd, uint64_t nodeid); /* whether the kernel holds the node */
};
extern const struct backing_ops kernel_backing_ops;

/* How the kernel is told of backing files. */
struct backing_device {
	const struct backing_ops *ops; /* never changes */
	int dev_fd;		       /* set once, before any node is attached */
	/* The mount that the kernel reads and writes private files by, by itself, which decides about
	 * access times; -1: the one that they were opened by. Set once, before any node is attached. */
	int private_mount_fd;
};

/* One open backing file. With a reference its fd may be used without any lock. */
struct backing {
	/* Never change once a node has the backing. */
	int fd;			     /* -1: lost, a restored file that cannot be opened again */
	int32_t id;		     /* backing id, 0 when not passed through */
	uint8_t kind;		     /* enum node_kind */
	bool bypass;		     /* READ_BYPASS */
	uint8_t handle_len;	     /* 0: the file system has no handles */
	struct ledger_handle handle; /* with it the next daemon opens the file again */

	uint32_t refs;		  /* node_table.lock protects it */
	_Atomic int32_t *closing; /* node_table.lock; where the ledger notes that the id is being closed */
	struct backing *next;	  /* node_table.lock; in the list of those without a reference */

	/* Held over fsync(2), and until what it said is noted: the next one would find nothing. No other
	 * lock is held when it is taken. */
	pthread_mutex_t syncing;
	struct stream stream; /* of its reads; ahead.h says what protects it */
};

/* Make a backing of an open file, with one reference and no backing id, and note its file handle. It
 * takes fd over, but not when there is no memory: then it returns NULL, and fd stays the caller's. */
struct backing *backing_new(int fd, enum node_kind kind);

/* Open the file of a handle anew, in the file system of volume_fd, and make a backing of it that has
 * the given backing id. When the file cannot be opened, fd is -1. NULL: there is no memory. */
struct backing *backing_reopen(int volume_fd, const struct ledger_slot *slot);

/* Tell the kernel of a backing that nobody else knows yet, and give it the id that the kernel says.
 * Returns 0, or the -errno of the ioctl. The ledger notes the id, lest it be lost when the daemon is
 * killed here. */
int backing_register(const struct backing_device *device, struct ledger *ledger, struct backing *b);

/* Take one more reference. The caller holds node_table.lock. */
void backing_get_locked(struct backing *b);

/* Give a reference back. With the last one the backing goes to the front of *free_list, for
 * backing_free_all(). The caller holds node_table.lock. */
void backing_put_locked(struct backing *b, struct backing **free_list);

/* Close every backing of the list, with its descriptor and its id. The caller holds no lock, as these
 * are system calls. What users have open through an id is not harmed by its end. */
void backing_free_all(const struct backing_device *device, struct backing *free_list);

#endif
