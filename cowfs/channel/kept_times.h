/*
 * kept_times.h - a change of a directory that is none that users made, and moves no time that they see
 */
#ifndef COWFS_KEPT_TIMES_H
#define COWFS_KEPT_TIMES_H

#include "ledger.h"

/* Before a name is put into a directory of the upper layer, or taken out of it, for a copy-up: note its
 * times. One at a time: for the holder of touch_table.lock. 0 or -errno. */
int kept_times_begin(struct ledger *l, int directory);

/* Set the times back that were noted last. The change is made or has failed by now, so an error here
 * fails nothing; the next request will meet it. */
void kept_times_end(struct ledger *l, int directory);

/* Set back what the daemon before was killed over, before anybody is served. */
void kept_times_restore(struct ledger *l, int volume_fd);

#endif
