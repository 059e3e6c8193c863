/*
 * writeback.h - errors of writing a file's pages back: each is told once to every open of it
 */
#ifndef COWFS_WRITEBACK_H
#define COWFS_WRITEBACK_H

#include <stdint.h>

struct told;

/* Of one node. Every word is guarded by its owner's lock. */
struct writeback {
	uint16_t errors;   /* how many there were; counts round */
	uint16_t error;	   /* errno of the last one */
	struct told *told; /* the handles that know more than when they were opened */
};

/* The file handle of an open that is made now by the request of this number, which is no other's as
 * long as the connection lives. */
uint64_t writeback_handle(const struct writeback *w, uint64_t unique);

/* Count an error that has come to light, a positive errno. */
void writeback_failed(struct writeback *w, int error);

/* What a sync through this handle has to say: 0, or once the errno of the last error. */
int writeback_tell(struct writeback *w, uint64_t fh);

/* The handle is closed: free what it was told. */
void writeback_released(struct writeback *w, uint64_t fh);

/* Every handle is closed. What was counted stays. */
void writeback_free(struct writeback *w);

#endif
