/*
 * words.h - what pyfuse3's handlers are told by names, because it has no other word for it
 *
 * All of it begins with a slash, which the kernel never puts into a name, and the channel lets none
 * through that a user puts into the name of an attribute. Python has these words as constants of the
 * extension module: see _channel.pyi.
 */
#ifndef COWFS_WORDS_H
#define COWFS_WORDS_H

/* The name of a CREATE that is an O_TMPFILE; so the kernel calls it. */
#define WORD_UNNAMED "/"
/* Before the name of an ACL in a SETXATTR: setgid has to go with it. */
#define WORD_TAKES_SETGID "/"
/* The attribute in a GETXATTR whose value is the answer to a STATX. */
#define WORD_STATX "/statx"
/* Before a new name, and before the name to be removed, in a rename before both: the kernel has sent the
 * request again, since the daemon that read it has ended without an answer. */
#define WORD_AGAIN "/"
/* The same before the name of an attribute; in a SETXATTR it stands for XATTR_CREATE. */
#define WORD_ATTRIBUTE_AGAIN "//"
/* An exchange cannot be told by its names: it has its number before the old one, "/<decimal>/<name>". */
#define WORD_EXCHANGE "/"

#endif
