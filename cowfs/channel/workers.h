/*
 * workers.h - the threads that read requests
 */
#ifndef COWFS_WORKERS_H
#define COWFS_WORKERS_H

#include "channel.h"

/* Start the first worker; others follow as requests come. 0 or -errno. */
int workers_start(struct channel *ch);

/* Have every worker end after the request that it serves, and wait for that. */
void workers_stop(struct channel *ch);

#endif
