/*
 * clone.c - a clone of one file, with its attributes and without a name
 *
 * Knows system calls, and neither Python nor the channel.
 */
#include "clone.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/xattr.h>
#include <unistd.h>

static int ficlone(int target, int source)
{
	int err;

	do
		err = ioctl(target, FICLONE, source);
	while (err < 0 && errno == EINTR);
	return err;
}

static bool set_nocow(int fd, bool nocow)
{
	int flags;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
		return false;
	flags = nocow ? (flags | FS_NOCOW_FL) & ~FS_COMPR_FL : flags & ~FS_NOCOW_FL;
	return ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0;
}

/* btrfs refuses a clone (EINVAL) between a file that has checksums and one that has none, after
 * chattr +C or with a mount option of which no flag tells. An empty file can be made to be either. */
static int clone_in_kind(int target, int source)
{
	int flags;
	bool nocow = ioctl(source, FS_IOC_GETFLAGS, &flags) == 0 && flags & FS_NOCOW_FL;

	for (int i = 0; i < 2; i++, nocow = !nocow) {
		if (!set_nocow(target, nocow))
			continue;
		if (ficlone(target, source) == 0)
			return 1;
		if (errno != EINVAL)
			return -1;
	}
	errno = EINVAL;
	return -1;
}

int clone_data(int target, int source, const struct stat *st)
{
	if (!st->st_size || ficlone(target, source) == 0)
		return 0;
	return errno == EINVAL ? clone_in_kind(target, source) : -1;
}

/* Nanoseconds since the epoch, as trusted.cowfs.btime has them; 0 where the file system does not say
 * (nothing was made in 1970). */
static int64_t birth_time(int fd)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BTIME, &st) < 0 ||
	    !(st.stx_mask & STATX_BTIME))
		return 0;
	return (int64_t)st.stx_btime.tv_sec * 1000000000 + st.stx_btime.tv_nsec;
}

static int dress(int target, int source, const struct stat *st, const struct clone_mark *marks,
		 int count, const char *birth_mark)
{
	struct timespec times[2] = {st->st_atim, st->st_mtim};
	int64_t born = birth_time(source);
	uint64_t value = htole64((uint64_t)born);
	struct stat made;

	if (fstat(target, &made) < 0)
		return -1;
	for (int i = 0; i < count; i++)
		if (fsetxattr(target, marks[i].name, marks[i].value, marks[i].size, 0) < 0)
			return -1;
	if (born && fsetxattr(target, birth_mark, &value, sizeof(value), 0) < 0)
		return -1;
	/* In this order: chown(2) clears set-id bits, which it was not made with, and all of them set
	 * times. */
	if ((made.st_uid != st->st_uid || made.st_gid != st->st_gid) &&
	    fchown(target, st->st_uid, st->st_gid) < 0)
		return -1;
	if (made.st_mode != st->st_mode && fchmod(target, st->st_mode & 07777) < 0)
		return -1;
	return futimens(target, times);
}

int clone_unnamed(int source, const struct stat *st, int directory, bool with_data,
		  const struct clone_mark *marks, int count, const char *birth_mark)
{
	int target = openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, st->st_mode & 0777);

	if (target < 0)
		return -1;
	if ((with_data && clone_data(target, source, st) < 0) ||
	    dress(target, source, st, marks, count, birth_mark) < 0) {
		int saved = errno;

		close(target);
		errno = saved;
		return -1;
	}
	return target;
}
