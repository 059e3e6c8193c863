/*
 * ahead.h - reading ahead of a reader that goes through a file from beginning to end
 *
 * The kernel's own read-ahead is driven by our reads: it asks the disk for more when we come to
 * pages that it has asked for already, and then we are the ones who copy, twice, while the disk may
 * have nothing to do. So a worker that has answered goes on over the file without copying, some
 * way in front of the reader, and so keeps the disk busy.
 *
 * This file knows offsets and a descriptor. It does not know requests.
 *
 * Locking: none; nobody waits here but for the disk. `busy` belongs to the one worker that is in
 * front of the reader, and `done` with it.
 */
#ifndef COWFS_AHEAD_H
#define COWFS_AHEAD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How a file is being read. All zero: not at all so far. */
struct stream {
	_Atomic uint64_t next; /* where the reads in sequence have come to */
	atomic_bool busy;
	uint64_t done; /* busy; everything before it has been asked for, or is in memory */
};

struct ahead {
	int null_fd;	     /* never changes; where the pages are "written" to. -1: do nothing */
	atomic_uint workers; /* those that are in front of a reader now */
};

/* Without /dev/null nothing is read ahead, which is no error. */
void ahead_init(struct ahead *a);

/* No worker may read ahead any more. */
void ahead_destroy(struct ahead *a);

/* Note that somebody reads size bytes at offset. Returns whether that is about where the reads before it
 * have come to. */
bool ahead_follows(struct stream *s, uint64_t offset, size_t size);

/* Whether a range of a file is in memory, as a page here and there tells. false as well where a part
 * of it lies behind the file's end, or the file cannot be mapped. */
bool ahead_is_in_memory(int fd, uint64_t offset, uint64_t size);

/* Bring what comes next of the file into memory, for as long as its reader keeps coming nearer.
 * Waits for the disk. An error ends it: the reader will meet it itself. */
void ahead_read(struct ahead *a, struct stream *s, int fd);

#endif
