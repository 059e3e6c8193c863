/*
 * stock.h - clones that are made before anybody asks for them
 *
 * They have no name, and are of files of the template, which never change: so one is as good as a clone
 * that is made when it is asked for, however long that takes. One worker makes what is planned, while
 * others take what is ready, and wait for what is just being made.
 *
 * Locking: `lock` guards the rest, and is not held while a clone is made.
 */
#ifndef COWFS_STOCK_H
#define COWFS_STOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* How far a walk may be behind. Each is a descriptor and an inode on the disk. */
#define STOCK_CLONES 8

enum stock_state { STOCK_NONE, STOCK_PLANNED, STOCK_MAKING, STOCK_READY };

struct stock {
	pthread_mutex_t lock;
	pthread_cond_t made;
	struct stock_clone {
		enum stock_state state;
		uint64_t nodeid;
		int fd;	    /* READY */
		char *path; /* in the template; PLANNED and MAKING */
	} clones[STOCK_CLONES];
	unsigned oldest;
	bool used; /* since stock_drop_idle() */
};

void stock_init(struct stock *s);
/* When nobody makes any. */
void stock_destroy(struct stock *s);

/* In the place of the oldest, unless that is still to be made, or there is no memory. */
void stock_plan(struct stock *s, uint64_t nodeid, const char *path);
/* What is to be made first; NULL: nothing. The caller makes it, and calls stock_made(). */
struct stock_clone *stock_begin(struct stock *s);
/* fd becomes the stock's; -1: it could not be made. */
void stock_made(struct stock *s, struct stock_clone *clone, int fd);

bool stock_is_ready(struct stock *s, uint64_t nodeid);
/* Gives the descriptor away; -1: there is none, and none is planned any more. */
int stock_take(struct stock *s, uint64_t nodeid);

/* Close all that are ready, if since the last call none was planned or taken: the walk has stopped, and
 * each is an inode that counts for its owner's quota and keeps the volume from being made read-only. */
void stock_drop_idle(struct stock *s);

#endif
