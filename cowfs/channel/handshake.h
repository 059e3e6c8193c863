/*
 * handshake.h - mount(2), and INIT with both sides
 */
#ifndef COWFS_HANDSHAKE_H
#define COWFS_HANDSHAKE_H

#include <stdint.h>

#include "channel.h"

/* Mount, and take the kernel's descriptor. Returns 0, or the -errno of opening the mountpoint (ELOOP,
 * ENOTDIR for a symlink) or /dev/fuse, or of mount(2); -EBUSY when there is a descriptor already. */
int channel_mount(struct channel *ch, const char *source, const char *mountpoint,
		  unsigned long flags, const char *options);

/* Use this descriptor as the kernel's, and take it over; the tests' way in. */
void channel_adopt(struct channel *ch, int dev_fd);

/* Agree on the protocol with both sides, then start the threads. 0 or -errno. */
int channel_start(struct channel *ch);

/* Go on with a connection that another daemon has started: INIT with libfuse alone, the open files of
 * the ledger, and the kernel is asked for every request that had no answer. Takes dev_fd over;
 * volume_fd is of the volume, and one open file description for every daemon of this mount. Returns how
 * many open files are lost, or -errno: -EPROTO when this version cannot serve what was agreed on at INIT,
 * -EINVAL when the kernel cannot send again. */
int channel_resume(struct channel *ch, int dev_fd, int volume_fd);

#endif
