/*
 * attr.h - attributes as the kernel wants them
 */
#ifndef COWFS_ATTR_H
#define COWFS_ATTR_H

#include <stdint.h>
#include <sys/stat.h>

#include "wire.h"

/* Seconds for which the kernel may keep what nothing but Python or the channel will change. */
#define FOREVER_S (UINT64_C(10) * 365 * 86400)

/* Those of a file that users see under the inode number ino. */
static inline struct fuse_attr attr_of(const struct stat *st, uint64_t ino)
{
	return (struct fuse_attr){
		.ino = ino,
		.size = (uint64_t)st->st_size,
		.blocks = (uint64_t)st->st_blocks,
		.atime = (uint64_t)st->st_atim.tv_sec,
		.mtime = (uint64_t)st->st_mtim.tv_sec,
		.ctime = (uint64_t)st->st_ctim.tv_sec,
		.atimensec = (uint32_t)st->st_atim.tv_nsec,
		.mtimensec = (uint32_t)st->st_mtim.tv_nsec,
		.ctimensec = (uint32_t)st->st_ctim.tv_nsec,
		.mode = st->st_mode,
		.nlink = (uint32_t)st->st_nlink,
		.uid = st->st_uid,
		.gid = st->st_gid,
		.rdev = (uint32_t)st->st_rdev,
		.blksize = (uint32_t)st->st_blksize,
	};
}

#endif
