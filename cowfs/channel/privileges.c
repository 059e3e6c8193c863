/*
 * privileges.c - what a change of data does to setuid and setgid
 *
 * Linux takes these bits away when somebody without CAP_FSETID changes a file's data (inode(7), and
 * setattr_should_drop_suidgid() in fs/attr.c). The daemon has that capability, so its own changes
 * would leave them. Has no state, hence no lock.
 */
#include "privileges.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernel.h"

struct caller {
	uint32_t uid;
	bool in_group;
};

/* The numbers of one line of /proc/PID/status. */
static uint32_t number_at(const char *line, int index)
{
	unsigned long number = FUSE_INVALID_UIDGID;
	char *end;

	for (; index >= 0; index--, line = end) {
		number = strtoul(line, &end, 10);
		if (end == line)
			return FUSE_INVALID_UIDGID;
	}
	return (uint32_t)number;
}

static bool has_number(const char *line, uint32_t wanted)
{
	char *end;

	for (;; line = end) {
		unsigned long number = strtoul(line, &end, 10);
		if (end == line)
			return false;
		if (number == wanted)
			return true;
	}
}

/* The user of the caller, as caller.py finds it, and whether the caller is in the group gid. A request
 * brings one group at most, and on a kernel that allows idmapped mounts no id at all. A caller that cannot
 * be seen counts as nobody, in no group. */
static struct caller caller_of(const struct request *rq, gid_t gid)
{
	struct caller caller = {rq->head.uid, rq->head.gid == gid};
	char *line = NULL;
	char path[64];
	size_t room = 0;
	FILE *status;

	if (caller.uid != FUSE_INVALID_UIDGID && (caller.uid == 0 || caller.in_group))
		return caller;
	snprintf(path, sizeof(path), "/proc/%u/status", rq->head.pid);
	status = fopen(path, "re");
	if (!status)
		return caller;
	while (getline(&line, &room, status) > 0) {
		if (strncmp(line, "Uid:", 4) == 0 && caller.uid == FUSE_INVALID_UIDGID)
			caller.uid = number_at(line + 4, 3);
		else if (strncmp(line, "Gid:", 4) == 0 && rq->head.gid == FUSE_INVALID_UIDGID)
			caller.in_group = number_at(line + 4, 3) == gid;
		else if (strncmp(line, "Groups:", 7) == 0)
			caller.in_group |= has_number(line + 7, gid);
	}
	free(line);
	fclose(status);
	return caller;
}

mode_t lost_privileges(mode_t mode, bool in_group)
{
	mode_t lost = mode & S_ISUID;

	if (mode & S_ISGID && (mode & S_IXGRP || !in_group))
		lost |= S_ISGID;
	return lost;
}

static int drop(struct channel *ch, const struct request *rq, uint64_t nodeid, int fd,
		bool keeps_for_root)
{
	struct caller caller;
	struct stat st;
	mode_t drop;

	if (fstat(fd, &st) < 0)
		return errno;
	if (!(st.st_mode & (S_ISUID | S_ISGID)))
		return 0;
	caller = caller_of(rq, st.st_gid);
	if (keeps_for_root && caller.uid == 0)
		return 0;
	drop = lost_privileges(st.st_mode, caller.in_group);
	if (!drop)
		return 0;
	if (fchmod(fd, st.st_mode & 07777 & ~drop) < 0)
		return errno;
	/* the kernel takes it that a change of data changes size and times, and no mode */
	notify_inval_attr(ch, nodeid);
	return 0;
}

int drop_privileges(struct channel *ch, const struct request *rq, uint64_t nodeid, int fd)
{
	return drop(ch, rq, nodeid, fd, false);
}

int drop_privileges_of_user(struct channel *ch, const struct request *rq, uint64_t nodeid, int fd)
{
	return drop(ch, rq, nodeid, fd, true);
}
