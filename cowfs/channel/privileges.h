/*
 * privileges.h - what a change of data does to setuid and setgid
 */
#ifndef COWFS_PRIVILEGES_H
#define COWFS_PRIVILEGES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "channel.h"

/* Which of setuid and setgid a change of data or owner takes from a file of that mode, when the caller
 * has no CAP_FSETID. */
mode_t lost_privileges(mode_t mode, bool in_group);

/* Take setuid and setgid from the file, whose data the caller of rq is about to change without
 * CAP_FSETID. 0 or errno. */
int drop_privileges(struct channel *ch, const struct request *rq, uint64_t nodeid, int fd);

/* The same where the kernel does not say whether the caller has CAP_FSETID, which it says of a WRITE
 * alone: root has it. */
int drop_privileges_of_user(struct channel *ch, const struct request *rq, uint64_t nodeid, int fd);

#endif
