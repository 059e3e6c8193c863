/*
 * backing.c - one open backing file: its references, its backing id, its file handle
 *
 * It knows descriptors and the kernel's ids for them. It does not know which node is backed, nor why.
 *
 * Locking: references are counted under node_table.lock; system calls are made without it, on a backing
 * that nobody has a reference to any more.
 */
#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* ---- references ------------------------------------------------------------------------------- */

void backing_put_locked(struct backing *b, struct backing **dead)
{
	if (--b->refs == 0) {
		b->next_dead = *dead;
		*dead = b;
	}
}

void backing_free_all(const struct backing_device *device, struct backing *dead)
{
	while (dead) {
		struct backing *b = dead;
		dead = b->next_dead;
		if (b->id > 0)
			device->ops->close(device->dev_fd, b->id);
		if (b->dying)
			atomic_store(b->dying, 0);
		if (b->fd >= 0)
			close(b->fd);
		pthread_mutex_destroy(&b->syncing);
		free(b);
	}
}

/* ---- file handles ------------------------------------------------------------------------------- */

void backing_note_handle(struct backing *b)
{
	union {
		struct file_handle head;
		uint8_t bytes[sizeof(struct file_handle) + LEDGER_HANDLE];
	} h;
	int mount_id;

	h.head.handle_bytes = LEDGER_HANDLE;
	if (name_to_handle_at(b->fd, "", &h.head, &mount_id, AT_EMPTY_PATH) < 0)
		return; /* restoring says so, should it come to that */
	b->handle_len = (uint8_t)h.head.handle_bytes;
	b->handle.type = h.head.handle_type;
	memcpy(b->handle.bytes, h.head.f_handle, h.head.handle_bytes);
}

int backing_open_handle(int mount_fd, uint8_t len, const struct ledger_handle *handle,
			bool writable)
{
	union {
		struct file_handle head;
		uint8_t bytes[sizeof(struct file_handle) + LEDGER_HANDLE];
	} h;
	int fd;

	if (len == 0 || len > LEDGER_HANDLE)
		return -1;
	h.head.handle_bytes = len;
	h.head.handle_type = handle->type;
	memcpy(h.head.f_handle, handle->bytes, len);
	fd = open_by_handle_at(mount_fd, &h.head,
			       (writable ? O_RDWR : O_RDONLY) | O_NOATIME | O_CLOEXEC);
	if (fd < 0 && writable && (errno == EROFS || errno == EPERM))
		fd = open_by_handle_at(mount_fd, &h.head, O_RDONLY | O_NOATIME | O_CLOEXEC);
	return fd;
}

int backing_register(const struct backing_device *device, const struct backing *b)
{
	int id, fd = -1;

	if (b->kind == NODE_PRIVATE && device->private_mount_fd >= 0)
		fd = backing_open_handle(device->private_mount_fd, b->handle_len, &b->handle, true);
	id = device->ops->open(device->dev_fd, fd < 0 ? b->fd : fd);
	if (fd >= 0)
		close(fd);
	return id;
}
