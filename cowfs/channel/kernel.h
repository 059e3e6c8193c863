/*
 * kernel.h - the writing side of /dev/fuse: replies and notifications
 */
#ifndef COWFS_KERNEL_H
#define COWFS_KERNEL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "channel.h"

/* Write one whole message. 0 or -errno. */
int kernel_write(struct channel *ch, const struct iovec *iov, int count);

/* Answer a request. error is a positive errno or 0; only with 0 the body follows. Returns 0, or the
 * -errno by which the kernel refused the reply: -ENOENT means that it does not wait for it any more.
 * The caller is answered with EIO when the reply itself was wrong. */
int kernel_answer(struct channel *ch, uint64_t unique, int error, const void *body, size_t len);

/* The same for a request that a worker holds; it is counted as answered here. */
int answer_here(struct channel *ch, const struct request *rq, int error, const void *body,
		size_t len);

/* Nothing can be read from the kernel any more: make closed_fd readable. err is the positive errno of
 * read(2), or 0: that the connection has ended is known, and needs no asking. */
void kernel_gone(struct channel *ch, int err);

/* ---- notifications; those that are sent at once return 0 or -errno ------------------------------ */

/* Start the thread that sends what is queued. 0 or -errno. */
int notifier_start(struct channel *ch);

/* End that thread, after the notification that it is sending, and drop what is still queued. It need not
 * have been started. */
void notifier_stop(struct channel *ch);

/* Queue a notification whose write may wait for a directory's lock. 0 or -ENOMEM. */
int notify_later(struct channel *ch, const void *message, size_t len);

/* Queue a FUSE_NOTIFY_INVAL_ENTRY. 0, -EINVAL for an impossible name, -ENOMEM. */
int notify_inval_entry(struct channel *ch, uint64_t parent, const char *name, size_t len);

/* Queue a FUSE_NOTIFY_INVAL_INODE for the pages of a range: it waits for those that a READ has locked.
 * 0 or -ENOMEM. */
int notify_inval_pages(struct channel *ch, uint64_t nodeid, uint64_t offset, uint32_t size);

/* Send a FUSE_NOTIFY_INVAL_INODE for the attributes alone. A node that the kernel does not know is no
 * error. */
int notify_inval_attr(struct channel *ch, uint64_t nodeid);

/* Send one for the attributes and everything that is cached: of a directory the listing, of a file its
 * pages. Returns when dirty pages have been written, which takes other workers. */
int notify_inval_data(struct channel *ch, uint64_t nodeid);

/* Send a FUSE_NOTIFY_RESEND: every request that has no answer yet comes again. */
int notify_resend(struct channel *ch);

#endif
