/*
 * dataplane.h - requests on open files, answered from the backing file
 */
#ifndef COWFS_DATAPLANE_H
#define COWFS_DATAPLANE_H

#include "channel.h"

/* Answer one request of ROUTE_HERE or ROUTE_FSYNC whose body is at least as long as its row in
 * opcodes.c says. */
void dataplane_answer(struct channel *ch, const struct request *rq);

#endif
