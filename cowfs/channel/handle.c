/*
 * handle.c - file handles, by which a later daemon opens what this one had: open_by_handle_at(2)
 */
#include "handle.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

union buffer {
	struct file_handle head;
	uint8_t bytes[sizeof(struct file_handle) + LEDGER_HANDLE];
};

uint8_t handle_of(int fd, struct ledger_handle *handle)
{
	union buffer h;
	int mount_id;

	h.head.handle_bytes = LEDGER_HANDLE;
	if (name_to_handle_at(fd, "", &h.head, &mount_id, AT_EMPTY_PATH) < 0)
		return 0;
	handle->type = h.head.handle_type;
	memcpy(handle->bytes, h.head.f_handle, h.head.handle_bytes);
	return (uint8_t)h.head.handle_bytes;
}

int handle_open(int mount_fd, uint8_t len, const struct ledger_handle *handle, int flags)
{
	union buffer h;

	if (len == 0 || len > LEDGER_HANDLE) {
		errno = EOPNOTSUPP;
		return -1;
	}
	h.head.handle_bytes = len;
	h.head.handle_type = handle->type;
	memcpy(h.head.f_handle, handle->bytes, len);
	return open_by_handle_at(mount_fd, &h.head, flags);
}
