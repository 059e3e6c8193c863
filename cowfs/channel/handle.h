/*
 * handle.h - file handles, by which a later daemon opens what this one had: open_by_handle_at(2)
 */
#ifndef COWFS_HANDLE_H
#define COWFS_HANDLE_H

#include <stdint.h>

#include "ledger.h"

/* The handle of an open file; O_PATH will do. Returns its length, 0 where the file system has none. */
uint8_t handle_of(int fd, struct ledger_handle *handle);

/* The file of a handle in the mount of mount_fd, whatever it is called by now. -1, with errno set. */
int handle_open(int mount_fd, uint8_t len, const struct ledger_handle *handle, int flags);

#endif
