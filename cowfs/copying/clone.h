/*
 * clone.h - a clone of one file, with its attributes and without a name
 *
 * Compiled into both extension modules that make clones: copying/_clones, and channel/_channel.
 */
#ifndef COWFS_CLONE_H
#define COWFS_CLONE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

/* An attribute that the clone is to have. */
struct clone_mark {
	const char *name;
	const void *value;
	size_t size;
};

/* FICLONE of the data of source, whose fstat is st, into an empty file. 0; 1 when flags of the target
 * (FS_NOCOW_FL) had to change for it; or -1 with errno. */
int clone_data(int target, int source, const struct stat *st);

/* An unnamed file in the file system of directory, open O_RDWR, with the data (empty if not with_data),
 * owner, mode and times of source, whose fstat is st, the marks, and under birth_mark when the source
 * was made. Other attributes are the caller's business. -1 with errno. */
int clone_unnamed(int source, const struct stat *st, int directory, bool with_data,
		  const struct clone_mark *marks, int count, const char *birth_mark);

#endif
