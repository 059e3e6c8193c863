/*
 * peer.h - both neighbours of a channel, played by a test
 *
 * A test speaks the kernel's side over a SEQPACKET socket pair that the channel takes for
 * /dev/fuse, and libfuse's side over daemon_fd. Nothing is mounted and no privilege is needed;
 * backing ids are made up, and counted, so that a leak of one fails the test.
 */
#ifndef COWFS_TESTS_PEER_H
#define COWFS_TESTS_PEER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "channel.h"
#include "handshake.h"
#include "kernel.h"
#include "life.h"
#include "node_restore.h"
#include "replies.h"

#define CHECK(what)                                                                                \
	do {                                                                                       \
		if (!(what)) {                                                                     \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what);         \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* Runs one test and sees to it that it left no descriptor and no backing id behind. */
#define RUN(test) run(#test, test)
void run(const char *name, void (*test)(void));

#define ROOT_INO 4711

/* For a release of whichever open: none has been told anything. */
#define NO_HANDLE 0

extern const struct backing_ops fake_ops;
extern _Atomic int fake_open_error;	/* positive errno: the next BACKING_OPENs fail with it */
extern _Atomic uint64_t fake_unknown;	/* the one node that the kernel does not hold */
extern _Atomic int fake_ids_open;	/* ids opened and not closed */

struct peer {
	struct channel *ch;
	int kernel; /* the kernel's end, -1 when closed */
	uint64_t next_unique;
};

/* A message as it came out of either side. */
struct message {
	size_t len; /* 0: the other end is closed */
	union {
		struct fuse_out_header out;
		struct fuse_in_header in;
		uint8_t bytes[WIRE_MAX_DATA + 8192];
	};
};

/* A channel after its INIT, ready for requests. */
void peer_start(struct peer *p, bool passthrough, uint32_t max_cached);
/* The same without INIT. */
void peer_new(struct peer *p, bool passthrough, uint32_t max_cached);
void peer_stop(struct peer *p);
/* The kernel goes away, as at umount. */
void peer_hang_up(struct peer *p);

/* Send a request as the kernel; returns its unique. parts are glued together. */
uint64_t ask(struct peer *p, uint32_t opcode, uint64_t nodeid, const void *body, size_t len);
/* Send these very bytes as the kernel. */
void ask_raw(struct peer *p, const void *bytes, size_t len);

/* What came to the kernel / to libfuse; waits up to ten seconds, then fails the test. */
struct message *kernel_gets(struct peer *p);
struct message *libfuse_gets(struct peer *p);
/* true: nothing comes for a short while. */
bool kernel_gets_nothing(struct peer *p);
bool libfuse_gets_nothing(struct peer *p);
/* Throw away whatever lies in either socket. */
void discard(struct peer *p);

/* Reply as libfuse, and drain. error is a positive errno. */
void libfuse_replies(struct peer *p, uint64_t unique, int error, const void *body, size_t len);
void libfuse_sends_raw(struct peer *p, const void *bytes, size_t len);

/* kernel_gets() of the reply to this unique with this error; returns it. */
struct message *expect_reply(struct peer *p, uint64_t unique, int error, size_t body_len);
#define BODY(message) ((void *)((message)->bytes + sizeof(struct fuse_out_header)))
#define IN_BODY(message) ((void *)((message)->bytes + sizeof(struct fuse_in_header)))

/* Frequent requests in one line; each does the whole exchange. */
void release_node(struct peer *p, uint64_t nodeid, uint32_t flags);
/* OPEN that the channel must relay; libfuse answers it with success. */
struct wire_open_out relayed_open(struct peer *p, uint64_t nodeid, uint32_t flags);
/* OPEN that the channel must answer by itself. */
struct wire_open_out repeat_open(struct peer *p, uint64_t nodeid);

/* An unlinked file in the test's directory; the descriptor is the caller's. */
int scratch_file(const char *content);

#endif
