/*
 * wire.h - the FUSE protocol, as far as the channel speaks it
 *
 * The kernel's own header is the base; this file adds what a distribution's copy of it may lack
 * (Debian 12 stops at protocol 7.38, the channel speaks up to 7.45). It is the only place in the
 * project that does so. Source: include/uapi/linux/fuse.h of Linux 6.18.
 *
 * It knows layouts and numbers. It does not know what the channel answers to anything.
 */
#ifndef COWFS_WIRE_H
#define COWFS_WIRE_H

#include <linux/fuse.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* The newest protocol whose every request the channel knows how to answer. */
#define WIRE_MINOR 45

/* Largest payload of one READ or WRITE that is agreed on (max_write, and as many pages as that is). */
#define WIRE_MAX_DATA (1024u * 1024u)

/* Header and fixed part that stand before the payload of a WRITE. */
#define WIRE_WRITE_PREFIX (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))

/* The bit that the kernel sets in the unique of a request it sends again after a RESEND. */
#define WIRE_UNIQUE_RESEND (UINT64_C(1) << 63)

/* FUSE_NOTIFY_RESEND, an enumerator since 7.40: no #ifdef can find it. */
#define WIRE_NOTIFY_RESEND 7

/* ---- numbers that older headers lack ------------------------------------------------------- */

#if FUSE_KERNEL_MINOR_VERSION < 39
#define FUSE_DIRECT_IO_ALLOW_MMAP (UINT64_C(1) << 36)
#define FUSE_STATX 52
struct fuse_statx_in {
	uint32_t getattr_flags;
	uint32_t reserved;
	uint64_t fh;
	uint32_t sx_flags;
	uint32_t sx_mask;
};
#endif

#if FUSE_KERNEL_MINOR_VERSION < 41
#define FUSE_ALLOW_IDMAP (UINT64_C(1) << 40)
#define FUSE_INVALID_UIDGID ((uint32_t)-1)
#endif

#if FUSE_KERNEL_MINOR_VERSION < 40
#define FUSE_PASSTHROUGH (UINT64_C(1) << 37)
#define FUSE_HAS_RESEND (UINT64_C(1) << 39)
#define FOPEN_PASSTHROUGH (1 << 7)
struct fuse_backing_map {
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define FUSE_DEV_IOC_BACKING_OPEN _IOW(FUSE_DEV_IOC_MAGIC, 1, struct fuse_backing_map)
#define FUSE_DEV_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)
#endif

#if FUSE_KERNEL_MINOR_VERSION < 45
#define FUSE_COPY_FILE_RANGE_64 53
struct fuse_copy_file_range_out {
	uint64_t bytes_copied;
};
#endif

/* ---- layouts that grew, under names of our own so that any header will do -------------------- */

/* struct fuse_init_in as every kernel since 2.6.14 sends it at least. */
struct wire_init_in {
	uint32_t major;
	uint32_t minor;
	uint32_t max_readahead;
	uint32_t flags;
};

/* ... and with what follows since 7.36. */
struct wire_init_in_ext {
	struct wire_init_in base;
	uint32_t flags2;
	uint32_t unused[11];
};

/* struct fuse_init_out since 7.43. */
struct wire_init_out {
	uint32_t major;
	uint32_t minor;
	uint32_t max_readahead;
	uint32_t flags;
	uint16_t max_background;
	uint16_t congestion_threshold;
	uint32_t max_write;
	uint32_t time_gran;
	uint16_t max_pages;
	uint16_t map_alignment;
	uint32_t flags2;
	uint32_t max_stack_depth;
	uint16_t request_timeout; /* seconds; anything but 0 lets the kernel abort the connection */
	uint16_t unused[11];
};

/* struct fuse_open_out since 7.40 (backing_id was padding before). */
struct wire_open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

/* The reply to STATX: what is not named here only passes through. */
struct wire_statx_out {
	uint8_t before_ino[64]; /* struct fuse_statx_out, and struct fuse_statx as far as stx_mode */
	uint64_t ino;
	uint8_t after_ino[216];
};

/* The reply to CREATE. */
struct wire_create_out {
	struct fuse_entry_out entry;
	struct wire_open_out open;
};

_Static_assert(sizeof(struct fuse_in_header) == 40, "fuse_in_header");
_Static_assert(sizeof(struct fuse_out_header) == 16, "fuse_out_header");
_Static_assert(sizeof(struct fuse_entry_out) == 128, "fuse_entry_out");
_Static_assert(sizeof(struct fuse_attr_out) == 104, "fuse_attr_out");
_Static_assert(sizeof(struct wire_init_in) == 16, "fuse_init_in, short");
_Static_assert(sizeof(struct wire_init_in_ext) == 64, "fuse_init_in");
_Static_assert(sizeof(struct wire_init_out) == 64, "fuse_init_out");
_Static_assert(sizeof(struct wire_open_out) == 16, "fuse_open_out");
_Static_assert(sizeof(struct fuse_statx_in) == 24, "fuse_statx_in");
_Static_assert(sizeof(struct wire_statx_out) == 288, "fuse_statx_out");
_Static_assert(sizeof(struct fuse_backing_map) == 16, "fuse_backing_map");
_Static_assert(sizeof(struct fuse_copy_file_range_in) == 56, "fuse_copy_file_range_in");
_Static_assert(WIRE_WRITE_PREFIX == 80, "WRITE prefix");

#endif
