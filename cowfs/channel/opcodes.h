/*
 * opcodes.h - one row for every request that the kernel may send
 */
#ifndef COWFS_OPCODES_H
#define COWFS_OPCODES_H

#include <stdbool.h>
#include <stdint.h>

/* What the channel does with a request. */
enum route {
	ROUTE_REFUSE = 0, /* answered with opcode_info.refusal; also every opcode that has no row */
	ROUTE_RELAY,	  /* goes to pyfuse3, the reply comes back through drain() */
	ROUTE_RELAY_MUTE, /* goes to pyfuse3, has no reply */
	ROUTE_OPEN,	  /* answered here when the node allows it, else relayed */
	ROUTE_LOOKUP,	  /* answered here when Python has primed the name, else relayed */
	ROUTE_SETATTR,	  /* answered here when Python has offered the node, else relayed */
	ROUTE_GETXATTR,	  /* the same, for an attribute that the file does not have */
	ROUTE_HERE,	  /* answered from the channel's own node table */
	ROUTE_FSYNC,	  /* the same, but relayed for a file that is open as the template's */
	ROUTE_DROP,	  /* has no reply and nobody wants it */
};

/* How a change that the kernel has sent again is marked for Python: it may have been made by the daemon
 * that read it first. */
enum repeat {
	REPEAT_PLAIN = 0,     /* not at all: it is no change, or may be made twice */
	REPEAT_NAME,	      /* before its first name */
	REPEAT_NAMES,	      /* before both of its names */
	REPEAT_ATTRIBUTE,     /* before the name of an attribute */
	REPEAT_NEW_ATTRIBUTE, /* the same, if the attribute has to be new */
};

/* What completes a reply of libfuse. */
enum reply_kind {
	REPLY_PLAIN = 0, /* nothing */
	REPLY_ENTRY,	 /* an inode number */
	REPLY_ATTR,	 /* the same */
	REPLY_STATX,	 /* the same */
	REPLY_ENTRIES,	 /* the same, for each name of a listing */
	REPLY_OPEN,	 /* the handle, the flags, and the backing id */
	REPLY_CREATE,	 /* both */
};

struct opcode_info {
	const char *name;   /* upper case, as in the kernel's header; NULL: no such opcode */
	uint8_t route;	    /* enum route */
	uint8_t strings;    /* how many NUL-terminated strings a well-formed body ends with */
	uint8_t min_body;   /* bytes of the fixed part of the body, before the strings; a shorter body is
			     * malformed */
	uint8_t refusal;    /* errno for ROUTE_REFUSE */
	uint8_t reply;	    /* enum reply_kind */
	uint8_t repeat;	    /* enum repeat */
	bool opens;	    /* counts an open; the body begins with the flags of open(2) */
	bool takes_handle;  /* the body begins with a file handle, in whose place Python has the node id */
	bool attribute;	    /* the first string is the name of an attribute */
};

/* Rows for opcodes 0 .. OPCODES-1; what lies above is counted in row 0. */
#define OPCODES 64

/* The row of an opcode; never NULL. */
const struct opcode_info *opcode_info(uint32_t opcode);

/* The index of an opcode's row, for tables kept per opcode. */
uint32_t opcode_slot(uint32_t opcode);

#endif
