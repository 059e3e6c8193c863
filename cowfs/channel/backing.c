/*
 * backing.c - one open backing file: its references, its backing id, its file handle
 *
 * It knows descriptors, and the ids by which the kernel knows them. It does not know which node is
 * backed, nor why.
 *
 * Locking: references are counted under node_table.lock. System calls are made without it, on a backing
 * that nobody knows yet, or that nobody has a reference to any more.
 */
#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "handle.h"
#include "wire.h"

/* ---- the ioctls --------------------------------------------------------------------------------- */

static int kernel_backing_open(int dev_fd, int fd)
{
	struct fuse_backing_map map = {.fd = fd};
	int id = ioctl(dev_fd, FUSE_DEV_IOC_BACKING_OPEN, &map);
	if (id < 0)
		return -errno;
	return id > 0 ? id : -EIO; /* 0 is "no backing id" on the wire */
}

static int kernel_backing_close(int dev_fd, int32_t id)
{
	uint32_t arg = (uint32_t)id;
	return ioctl(dev_fd, FUSE_DEV_IOC_BACKING_CLOSE, &arg) < 0 ? -errno : 0;
}

/* A notification about the attributes alone takes no lock, and fails for a node that is not there. */
static bool kernel_knows(int dev_fd, uint64_t nodeid)
{
	struct {
		struct fuse_out_header head;
		struct fuse_notify_inval_inode_out out;
	} m = {
		.head = {.len = sizeof(m), .error = FUSE_NOTIFY_INVAL_INODE},
		.out = {.ino = nodeid, .off = -1},
	};

	return write(dev_fd, &m, sizeof(m)) >= 0 || errno != ENOENT;
}

const struct backing_ops kernel_backing_ops = {
	.open = kernel_backing_open,
	.close = kernel_backing_close,
	.knows = kernel_knows,
};

/* ---- file handles ------------------------------------------------------------------------------- */

/* The file of a handle in the mount of mount_fd, or -1. */
static int open_handle(int mount_fd, uint8_t len, const struct ledger_handle *handle, bool writable)
{
	int flags = O_NOATIME | O_CLOEXEC;
	int fd = handle_open(mount_fd, len, handle, flags | (writable ? O_RDWR : O_RDONLY));

	if (fd < 0 && writable && (errno == EROFS || errno == EPERM))
		fd = handle_open(mount_fd, len, handle, flags | O_RDONLY);
	return fd;
}

/* ---- making and ending -------------------------------------------------------------------------- */

struct backing *backing_new(int fd, enum node_kind kind)
{
	struct backing *b = malloc(sizeof(*b));

	if (!b)
		return NULL;
	*b = (struct backing){.fd = fd,
			      .kind = (uint8_t)kind,
			      .refs = 1,
			      .syncing = PTHREAD_MUTEX_INITIALIZER};
	/* So that the next daemon can open the same file, whatever it is called then, or when it has no
	 * name any more. If there is none, restoring says so, should it come to that. */
	b->handle_len = handle_of(fd, &b->handle);
	return b;
}

struct backing *backing_reopen(int volume_fd, const struct ledger_slot *slot)
{
	struct backing *b = malloc(sizeof(*b));

	if (!b)
		return NULL;
	*b = (struct backing){.fd = open_handle(volume_fd, slot->handle_len, &slot->handle,
						slot->kind == NODE_PRIVATE),
			      .id = slot->id,
			      .kind = slot->kind,
			      .bypass = slot->flags & SLOT_BYPASS,
			      .handle_len = slot->handle_len,
			      .handle = slot->handle,
			      .refs = 1,
			      .syncing = PTHREAD_MUTEX_INITIALIZER};
	return b;
}

int backing_register(const struct backing_device *device, struct ledger *ledger, struct backing *b)
{
	int id, fd = -1;

	if (b->kind == NODE_PRIVATE && device->private_mount_fd >= 0)
		fd = open_handle(device->private_mount_fd, b->handle_len, &b->handle, true);
	id = device->ops->open(device->dev_fd, fd < 0 ? b->fd : fd);
	if (fd >= 0)
		close(fd);
	if (id < 0)
		return id;
	ledger_registered(ledger, id);
	b->id = id;
	return 0;
}

/* ---- references --------------------------------------------------------------------------------- */

void backing_get_locked(struct backing *b)
{
	b->refs++;
}

void backing_put_locked(struct backing *b, struct backing **free_list)
{
	if (--b->refs == 0) {
		b->next = *free_list;
		*free_list = b;
	}
}

void backing_free_all(const struct backing_device *device, struct backing *free_list)
{
	while (free_list) {
		struct backing *b = free_list;
		free_list = b->next;
		if (b->id > 0)
			device->ops->close(device->dev_fd, b->id);
		if (b->closing)
			atomic_store(b->closing, 0);
		if (b->fd >= 0)
			close(b->fd);
		pthread_mutex_destroy(&b->syncing);
		free(b);
	}
}
