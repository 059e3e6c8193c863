/*
 * agreement.h - what is agreed on with the kernel at INIT
 */
#ifndef COWFS_AGREEMENT_H
#define COWFS_AGREEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ledger.h"
#include "wire.h"

/* The most bytes of one READ or WRITE that can be served: the first versions agreed on 256 pages of
 * whatever size, and on some machines a page has 64 KiB. */
#define AGREEMENT_MAX_DATA (16u * 1024u * 1024u)

/* Room for the words of agreement_can_be_served(). */
#define AGREEMENT_WHY 160

/* All flags of either side's INIT; the second word counts only if the first one says so. */
uint64_t agreement_offered(const struct wire_init_in_ext *in);
uint64_t agreement_flags(const struct wire_init_out *out);

/* The size of the largest READ. The kernel counts in its own pages, whatever max_write says. */
uint64_t agreement_max_read(const struct wire_init_out *out);
/* How many pages make up WIRE_MAX_DATA. */
uint16_t agreement_max_pages(long page_size);

/* What this version agrees on, given what the kernel offers; with passthrough if it may. */
struct wire_init_out agreement_make(const struct wire_init_in_ext *in, bool passthrough);

/* Whether this version can go on with a connection on which another one has agreed; if not, the words
 * say what about it, the other version, is in the way. */
bool agreement_can_be_served(const struct ledger_init *init, bool passthrough,
			     char why[AGREEMENT_WHY]);

#endif
