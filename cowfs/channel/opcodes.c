/*
 * opcodes.c - one row for every request that the kernel may send
 *
 * Knows who answers what, how long a well-formed request is at least, and what is special about a
 * request or its reply. The lengths matter because libfuse trusts its peer: it reads the fixed part and
 * the names of a request without looking at the length, so nothing malformed may ever be relayed.
 *
 * Has no state, hence no lock.
 */
#include "opcodes.h"

#include <errno.h>

#include "wire.h"

#define IN(type) ((uint8_t)sizeof(struct type))

#define RELAY(body, names) .route = ROUTE_RELAY, .min_body = (body), .strings = (names)
#define HERE(body) .route = ROUTE_HERE, .min_body = (body)
#define REFUSE(err) .route = ROUTE_REFUSE, .refusal = (err)
#define REPEAT(how) .repeat = REPEAT_##how
#define REPLY(kind) .reply = REPLY_##kind

static const struct opcode_info table[OPCODES] = {
	[0] = {.name = "OTHER", REFUSE(ENOSYS)},

	/* names, attributes: pyfuse3 */
	[FUSE_LOOKUP] = {.name = "LOOKUP", .route = ROUTE_LOOKUP, .strings = 1, REPLY(ENTRY)},
	[FUSE_GETATTR] = {.name = "GETATTR", RELAY(IN(fuse_getattr_in), 0), REPLY(ATTR)},
	[FUSE_STATX] = {.name = "STATX", RELAY(IN(fuse_statx_in), 0), REPLY(STATX)},
	[FUSE_SETATTR] = {.name = "SETATTR",
			  .route = ROUTE_SETATTR,
			  .min_body = IN(fuse_setattr_in),
			  REPLY(ATTR)},
	[FUSE_READLINK] = {.name = "READLINK", RELAY(0, 0)},
	[FUSE_SYMLINK] = {.name = "SYMLINK", RELAY(0, 2), REPEAT(NAME), REPLY(ENTRY)},
	[FUSE_MKNOD] = {.name = "MKNOD", RELAY(IN(fuse_mknod_in), 1), REPEAT(NAME), REPLY(ENTRY)},
	[FUSE_MKDIR] = {.name = "MKDIR", RELAY(IN(fuse_mkdir_in), 1), REPEAT(NAME), REPLY(ENTRY)},
	[FUSE_UNLINK] = {.name = "UNLINK", RELAY(0, 1), REPEAT(NAME)},
	[FUSE_RMDIR] = {.name = "RMDIR", RELAY(0, 1), REPEAT(NAME)},
	[FUSE_RENAME] = {.name = "RENAME", RELAY(IN(fuse_rename_in), 2), REPEAT(NAMES)},
	[FUSE_RENAME2] = {.name = "RENAME2", RELAY(IN(fuse_rename2_in), 2), REPEAT(NAMES)},
	[FUSE_LINK] = {.name = "LINK", RELAY(IN(fuse_link_in), 1), REPEAT(NAME), REPLY(ENTRY)},
	[FUSE_STATFS] = {.name = "STATFS", RELAY(0, 0)},
	/* SETXATTR begins in one of two ways, of which relay.c leaves the short one, and ends in a value:
	 * serve.c sees whether it is well formed. */
	[FUSE_SETXATTR] = {.name = "SETXATTR",
			   RELAY(FUSE_COMPAT_SETXATTR_IN_SIZE, 0),
			   .attribute = true,
			   REPEAT(NEW_ATTRIBUTE)},
	[FUSE_GETXATTR] = {.name = "GETXATTR",
			   .route = ROUTE_GETXATTR,
			   .min_body = IN(fuse_getxattr_in),
			   .strings = 1,
			   .attribute = true},
	[FUSE_LISTXATTR] = {.name = "LISTXATTR", RELAY(IN(fuse_getxattr_in), 0)},
	[FUSE_REMOVEXATTR] = {.name = "REMOVEXATTR",
			      RELAY(0, 1),
			      .attribute = true,
			      REPEAT(ATTRIBUTE)},
	[FUSE_ACCESS] = {.name = "ACCESS", RELAY(IN(fuse_access_in), 0)},
	[FUSE_CREATE] = {.name = "CREATE",
			 RELAY(IN(fuse_create_in), 1),
			 .opens = true,
			 REPEAT(NAME),
			 REPLY(CREATE)},
	/* makes no name: made twice, nobody sees the first one */
	[FUSE_TMPFILE] = {.name = "TMPFILE",
			  RELAY(IN(fuse_create_in), 1),
			  .opens = true,
			  REPLY(CREATE)},
	[FUSE_READDIRPLUS] = {.name = "READDIRPLUS",
			      RELAY(IN(fuse_read_in), 0),
			      .takes_handle = true,
			      REPLY(ENTRIES)},
	[FUSE_FSYNCDIR] = {.name = "FSYNCDIR",
			   RELAY(IN(fuse_fsync_in), 0),
			   .takes_handle = true},
	[FUSE_FORGET] = {.name = "FORGET",
			 .route = ROUTE_RELAY_MUTE,
			 .min_body = IN(fuse_forget_in)},
	[FUSE_BATCH_FORGET] = {.name = "BATCH_FORGET",
			       .route = ROUTE_RELAY_MUTE,
			       .min_body = IN(fuse_batch_forget_in)},

	/* open files: the channel, except the first open of a node */
	[FUSE_OPEN] = {.name = "OPEN",
		       .route = ROUTE_OPEN,
		       .min_body = IN(fuse_open_in),
		       .opens = true,
		       REPLY(OPEN)},
	[FUSE_READ] = {.name = "READ", HERE(IN(fuse_read_in))},
	[FUSE_WRITE] = {.name = "WRITE", HERE(IN(fuse_write_in))},
	[FUSE_RELEASE] = {.name = "RELEASE", HERE(IN(fuse_release_in))},
	[FUSE_FSYNC] = {.name = "FSYNC",
			.route = ROUTE_FSYNC,
			.min_body = IN(fuse_fsync_in),
			.takes_handle = true},
	[FUSE_FLUSH] = {.name = "FLUSH", HERE(IN(fuse_flush_in))},
	[FUSE_FALLOCATE] = {.name = "FALLOCATE", HERE(IN(fuse_fallocate_in))},
	[FUSE_LSEEK] = {.name = "LSEEK", HERE(IN(fuse_lseek_in))},
	[FUSE_COPY_FILE_RANGE] = {.name = "COPY_FILE_RANGE", HERE(IN(fuse_copy_file_range_in))},
	[FUSE_COPY_FILE_RANGE_64] = {.name = "COPY_FILE_RANGE_64",
				     HERE(IN(fuse_copy_file_range_in))},
	[FUSE_DESTROY] = {.name = "DESTROY", HERE(0)},

	/* An ENOSYS is remembered by the kernel and saves every later request of the kind.
	 * OPENDIR: with FUSE_NO_OPENDIR_SUPPORT it then opens directories by itself and keeps
	 * their listings (as if answered with FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE). */
	[FUSE_OPENDIR] = {.name = "OPENDIR", REFUSE(ENOSYS)},
	[FUSE_RELEASEDIR] = {.name = "RELEASEDIR", REFUSE(0)},
	[FUSE_READDIR] = {.name = "READDIR", REFUSE(ENOSYS)},
	[FUSE_INTERRUPT] = {.name = "INTERRUPT", REFUSE(ENOSYS)},
	[FUSE_GETLK] = {.name = "GETLK", REFUSE(ENOSYS)},
	[FUSE_SETLK] = {.name = "SETLK", REFUSE(ENOSYS)},
	[FUSE_SETLKW] = {.name = "SETLKW", REFUSE(ENOSYS)},
	[FUSE_BMAP] = {.name = "BMAP", REFUSE(ENOSYS)},
	[FUSE_IOCTL] = {.name = "IOCTL", REFUSE(ENOTTY)},
	[FUSE_POLL] = {.name = "POLL", REFUSE(ENOSYS)},
	[FUSE_SETUPMAPPING] = {.name = "SETUPMAPPING", REFUSE(ENOSYS)},
	[FUSE_REMOVEMAPPING] = {.name = "REMOVEMAPPING", REFUSE(ENOSYS)},
	[FUSE_SYNCFS] = {.name = "SYNCFS", REFUSE(ENOSYS)},
	/* A second INIT cannot come from a kernel; the first one never gets here. */
	[FUSE_INIT] = {.name = "INIT", REFUSE(EIO)},
	[FUSE_NOTIFY_REPLY] = {.name = "NOTIFY_REPLY", .route = ROUTE_DROP},
};

uint32_t opcode_slot(uint32_t opcode)
{
	return opcode < OPCODES && table[opcode].name ? opcode : 0;
}

const struct opcode_info *opcode_info(uint32_t opcode)
{
	return &table[opcode_slot(opcode)];
}
