/*
 * agreement.c - what is agreed on with the kernel at INIT
 *
 * It holds as long as the connection, which outlives daemons and versions. So what one version agrees
 * on, another one may have to serve, or has to refuse before it takes over. This file decides both,
 * and does nothing: it has no state and makes no system call but for the size of a page.
 */
#include "agreement.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MAX_READAHEAD (1024u * 1024u)

/*
 * Asked of the kernel, as far as it offers them: what every kernel offers since 5.10, and is relied
 * on, and what later ones do, and others do without. Left out with reason:
 * WRITEBACK_CACHE (switches passthrough off), AUTO_INVAL_DATA (the backing files change only
 * through us), READDIRPLUS_AUTO (pyfuse3 has no plain readdir), EXPORT_SUPPORT (node ids mean
 * nothing after a remount), SECURITY_CTX (it changes layouts that libfuse reads).
 */
static const uint64_t needed =
	FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC | FUSE_DONT_MASK |
	FUSE_DO_READDIRPLUS | FUSE_PARALLEL_DIROPS | FUSE_POSIX_ACL | FUSE_MAX_PAGES |
	FUSE_CACHE_SYMLINKS | FUSE_NO_OPENDIR_SUPPORT | FUSE_ASYNC_DIO;
static const uint64_t optional = FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT |
				 FUSE_DIRECT_IO_ALLOW_MMAP | FUSE_ALLOW_IDMAP | FUSE_INIT_EXT;

static uint64_t both_words(uint32_t flags, uint32_t flags2)
{
	return flags & FUSE_INIT_EXT ? flags | (uint64_t)flags2 << 32 : flags;
}

uint64_t agreement_offered(const struct wire_init_in_ext *in)
{
	return both_words(in->base.flags, in->flags2);
}

uint64_t agreement_flags(const struct wire_init_out *out)
{
	return both_words(out->flags, out->flags2);
}

uint64_t agreement_max_read(const struct wire_init_out *out)
{
	return (uint64_t)out->max_pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint16_t agreement_max_pages(long page_size)
{
	return page_size < (long)WIRE_MAX_DATA ? (uint16_t)((long)WIRE_MAX_DATA / page_size) : 1;
}

struct wire_init_out agreement_make(const struct wire_init_in_ext *in, bool passthrough)
{
	uint64_t offered = agreement_offered(in);
	uint64_t agreed = offered & (needed | optional);
	struct wire_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = in->base.minor < WIRE_MINOR ? in->base.minor : WIRE_MINOR,
		.max_readahead = MAX_READAHEAD,
		.max_background = 64,
		.congestion_threshold = 48,
		.max_write = WIRE_MAX_DATA,
		.time_gran = 1,
		.max_pages = agreement_max_pages(sysconf(_SC_PAGESIZE)),
	};

	if (passthrough && (offered & FUSE_PASSTHROUGH) && (agreed & FUSE_INIT_EXT)) {
		agreed |= FUSE_PASSTHROUGH;
		out.max_stack_depth = 1; /* 0 would silently switch passthrough off */
	}
	out.flags = (uint32_t)agreed;
	out.flags2 = (uint32_t)(agreed >> 32);
	return out;
}

bool agreement_can_be_served(const struct ledger_init *init, bool passthrough,
			     char why[AGREEMENT_WHY])
{
	const struct wire_init_out *theirs = &init->out;
	uint64_t flags = agreement_flags(theirs);
	struct wire_init_out ours =
		agreement_make(&init->in, passthrough && (flags & FUSE_PASSTHROUGH));
	uint64_t unknown = flags & ~agreement_flags(&ours);
	uint64_t missing = agreement_flags(&ours) & needed & ~flags;
	uint64_t max_read = agreement_max_read(theirs);
	uint64_t max_data = max_read > theirs->max_write ? max_read : theirs->max_write;

	if (theirs->major != ours.major || theirs->minor > ours.minor) {
		snprintf(why, AGREEMENT_WHY,
			 "it speaks FUSE %u.%u with the kernel, and this one %u.%u", theirs->major,
			 theirs->minor, ours.major, ours.minor);
		return false;
	}
	if (unknown || missing) {
		snprintf(why, AGREEMENT_WHY, "it has %sagreed with the kernel on what this one %s "
			 "(INIT flags %#llx)", unknown ? "" : "not ",
			 unknown ? "does not do" : "needs",
			 (unsigned long long)(unknown ? unknown : missing));
		return false;
	}
	if (max_data > AGREEMENT_MAX_DATA) {
		snprintf(why, AGREEMENT_WHY,
			 "the kernel may read or write %llu bytes at once with it, and %u with this one",
			 (unsigned long long)max_data, AGREEMENT_MAX_DATA);
		return false;
	}
	/* The kernel alone goes by these, or the channel as they were agreed on. */
	ours.minor = theirs->minor;
	ours.flags = theirs->flags;
	ours.flags2 = theirs->flags2;
	ours.max_readahead = theirs->max_readahead;
	ours.max_background = theirs->max_background;
	ours.congestion_threshold = theirs->congestion_threshold;
	ours.max_write = theirs->max_write;
	ours.max_pages = theirs->max_pages;
	if (memcmp(&ours, theirs, sizeof(ours))) {
		snprintf(why, AGREEMENT_WHY,
			 "it has agreed with the kernel on times, alignment, stacking or a time-out "
			 "as this one does not");
		return false;
	}
	return true;
}
