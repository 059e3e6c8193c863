/*
 * node_restore.h - the node table of a daemon that is gone, made again from its ledger
 */
#ifndef COWFS_NODE_RESTORE_H
#define COWFS_NODE_RESTORE_H

#include <stdint.h>

#include "node_table.h"

/* Take over what the ledger says of the daemon before: open its open files again, on the file system of
 * volume_fd, and close what nobody needs any more. To be called before any thread runs, on an empty
 * table whose device is known. Returns how many open files cannot be opened again (whatever passthrough
 * does not cover is answered with EIO), or -ENOMEM, -EMFILE. volume_fd is duplicated: nodes_look_back()
 * says what for. */
int nodes_restore(struct node_table *t, int volume_fd);

/* Find out whether an error of writing back was told in the life of the daemon before, and not noted;
 * if so note it for every file that was open. To be called with a borrowed backing of the node, before
 * that is synced. It waits for the disk, the first time after a restore. */
void nodes_look_back(struct node_table *t, uint64_t nodeid, const struct backing *b);

#endif
