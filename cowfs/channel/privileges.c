/*
 * privileges.c - what a change of data does to setuid and setgid
 *
 * Linux takes these bits away when somebody without CAP_FSETID changes a file's data (inode(7), and
 * setattr_should_drop_suidgid() in fs/attr.c). The daemon has that capability, so its own changes
 * would leave them. Has no state, hence no lock.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "channel.h"

/* Whether one of the caller's groups is gid. A request only brings the first of them; the caller
 * waits for its answer, so the others are in /proc. One that cannot be seen is in no group. */
static bool in_group(const struct request *rq, gid_t gid)
{
	char *line = NULL;
	char path[64];
	bool found = rq->head.gid == gid;
	size_t room = 0;
	FILE *status;

	if (found)
		return true;
	snprintf(path, sizeof(path), "/proc/%u/status", rq->head.pid);
	status = fopen(path, "re");
	if (!status)
		return false;
	while (getline(&line, &room, status) > 0) {
		if (strncmp(line, "Groups:", 7) != 0)
			continue;
		for (char *at = line + 7, *end; !found; at = end) {
			unsigned long group = strtoul(at, &end, 10);
			if (end == at)
				break;
			found = group == gid;
		}
		break;
	}
	free(line);
	fclose(status);
	return found;
}

int drop_privileges(struct channel *ch, const struct request *rq, uint64_t nodeid, int fd)
{
	struct stat st;
	mode_t drop;

	if (fstat(fd, &st) < 0)
		return errno;
	drop = st.st_mode & S_ISUID;
	if (st.st_mode & S_ISGID && (st.st_mode & S_IXGRP || !in_group(rq, st.st_gid)))
		drop |= S_ISGID;
	if (!drop)
		return 0;
	if (fchmod(fd, st.st_mode & 07777 & ~drop) < 0)
		return errno;
	/* the kernel takes it that a change of data changes size and times, and no mode */
	notify_inval_attr(ch, nodeid);
	return 0;
}
