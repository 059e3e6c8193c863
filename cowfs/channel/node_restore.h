/*
 * node_restore.h - the node table of a daemon that is gone, made again from its ledger
 */
#ifndef COWFS_NODE_RESTORE_H
#define COWFS_NODE_RESTORE_H

#include <stdint.h>

#include "node_table.h"

/* Take over what the ledger says of the daemon before: its open files are opened again, on the file
 * system of volume_fd, and what nobody needs any more is closed. Before any thread runs. Gives how
 * many open files cannot be opened again (EIO for whatever passthrough does not cover), or -ENOMEM,
 * -EMFILE. volume_fd is duplicated: nodes_look_back() says what for. */
int nodes_restore(struct node_table *t, int volume_fd);

/* To be called before a backing that was borrowed is synced: an error may have been told in the life of
 * the daemon before, and not noted. Waits for the disk, the first time after a restore. */
void nodes_look_back(struct node_table *t, uint64_t nodeid, const struct backing *b);

#endif
