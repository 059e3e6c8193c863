/*
 * served.h - who reads and writes what is not passed through, while somebody watches
 *
 * A table in a memory file of this daemon's own, which a watcher opens through /proc: it says until when
 * it watches, and reads the rows. What is passed through never gets here.
 */
#ifndef COWFS_SERVED_H
#define COWFS_SERVED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SERVED_LAYOUT 1
#define SERVED_ROWS 16384
#define SERVED_NAME 16

/* cowfs/observe/served.py reads it. */
struct served_head {
	char magic[8];
	uint32_t layout;
	_Atomic uint32_t used;	 /* rows */
	_Atomic uint64_t until;	 /* CLOCK_MONOTONIC, ns; written by watchers */
	_Atomic uint64_t lost;	 /* requests for which there was no row left */
	_Atomic uint64_t session; /* counts how often it was begun anew */
	uint64_t unused[3];
};

/* A thread and a node. */
struct served_row {
	uint64_t nodeid;
	uint32_t tid, pid;	/* pid 0: it cannot be told */
	char name[SERVED_NAME]; /* of the thread; padded with zeros */
	_Atomic uint64_t reads, read_bytes, writes, written;
};

struct served {
	int fd;			  /* never changes; -1: there is no table */
	struct served_head *head; /* never changes; in the memory file */
	struct served_row *rows;  /* the same */
	pthread_mutex_t lock;	  /* protects the two below, and what is in the memory file */
	uint16_t *index;	  /* row + 1 by hash, 2 * SERVED_ROWS of them; NULL before the first */
	uint64_t until;		  /* what the head said when it was last looked at */
};

/* Make the table. Without the memory for it nobody can watch, and all else goes on. */
void served_init(struct served *s);
void served_destroy(struct served *s);

/* A request of the thread that came at now_ns was served. The thread is waiting for its reply yet, so
 * /proc tells who it is. */
void served_count(struct served *s, uint64_t now_ns, uint32_t tid, uint64_t nodeid, bool wrote,
		  uint64_t bytes);

_Static_assert(sizeof(struct served_head) == 64, "served_head");
_Static_assert(sizeof(struct served_row) == 64, "served_row");

#endif
