/* Changes of mode and owner that are made in the channel: what it does by itself, what it leaves to
 * Python, and both at once. Files are empty, so that the test's directory needs no FICLONE; what takes
 * privileges (marks on the disk, a file's name from its descriptor) is left out without them. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "peer.h"

#define DIRECTORY 4000000000u /* node ids that no file of the test has */
#define FILES 500
#define ROUNDS 2000

/* ---- a directory in both layers ------------------------------------------------------------------- */

struct layers {
	char root[32];
	int root_fd, lower, upper, work;
};

static int subdirectory(int at, const char *name)
{
	int fd;

	CHECK(mkdirat(at, name, 0700) == 0);
	fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

static void make_layers(struct layers *l)
{
	strcpy(l->root, "touch-test-XXXXXX");
	CHECK(mkdtemp(l->root));
	l->root_fd = open(l->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(l->root_fd >= 0);
	close(subdirectory(l->root_fd, "of"));
	l->lower = subdirectory(l->root_fd, "of/template");
	l->upper = subdirectory(l->root_fd, "upper");
	l->work = subdirectory(l->root_fd, "work");
}

static void remove_layers(struct layers *l)
{
	char command[64];

	close(l->lower);
	close(l->upper);
	close(l->work);
	close(l->root_fd);
	snprintf(command, sizeof(command), "rm -r %s", l->root);
	CHECK(system(command) == 0);
}

/* Its inode number. */
static uint64_t make_file(int at, const char *name)
{
	struct stat st;
	int fd = openat(at, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	CHECK(fd >= 0 && fstat(fd, &st) == 0);
	close(fd);
	return st.st_ino;
}

/* Whether copy-up can be done here at all. */
static bool privileged(void)
{
	struct layers l;
	bool can;
	int fd;

	make_layers(&l);
	fd = openat(l.work, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	can = fd >= 0 && fsetxattr(fd, "trusted.cowfs.ino", "12345678", 8, 0) == 0 &&
	      linkat(fd, "", l.upper, "a", AT_EMPTY_PATH) == 0;
	if (fd >= 0)
		close(fd);
	remove_layers(&l);
	return can;
}

static int offer_listed(struct peer *p, const struct layers *l, uint64_t directory,
			const char *listing, size_t listing_len)
{
	struct touch_offer offer = {.nodeid = directory,
				    .upper_fd = l->upper,
				    .tree_fd = l->root_fd,
				    .work_fd = l->work,
				    .path = "of/template",
				    .listing = listing,
				    .listing_len = listing_len};

	return touch_offer(&p->ch->touch, &offer);
}

static int offer(struct peer *p, const struct layers *l, uint64_t directory)
{
	return offer_listed(p, l, directory, "", 0);
}

static mode_t mode_of(int at, const char *name)
{
	struct stat st;

	CHECK(fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0);
	return st.st_mode & 07777;
}

/* ---- asking ------------------------------------------------------------------------------------------- */

static uint64_t ask_mode(struct peer *p, uint64_t nodeid, mode_t mode)
{
	struct fuse_setattr_in in = {.valid = FATTR_MODE, .mode = S_IFREG | mode};

	return ask(p, FUSE_SETATTR, nodeid, &in, sizeof(in));
}

static void expect_mode(struct peer *p, uint64_t nodeid, mode_t mode)
{
	uint64_t unique = ask_mode(p, nodeid, mode);
	struct fuse_attr_out out;

	memcpy(&out, BODY(expect_reply(p, unique, 0, sizeof(out))), sizeof(out));
	CHECK(out.attr.ino == nodeid && out.attr.mode == (S_IFREG | mode) && out.attr.nlink == 1);
	CHECK(out.attr_valid > 1000000);
}

static void expect_relayed(struct peer *p, uint64_t unique)
{
	CHECK(libfuse_gets(p)->in.unique == unique);
	libfuse_replies(p, unique, EPERM, NULL, 0);
	expect_reply(p, unique, EPERM, 0);
}

/* ---- one by one --------------------------------------------------------------------------------------- */

static void a_file_of_the_template_is_copied_up_and_changed(void)
{
	struct peer p;
	struct layers l;
	struct stat before, after;
	struct touched *told;
	uint32_t count;
	uint64_t ino, mark;
	char data[64];

	if (!privileged())
		return;
	make_layers(&l);
	peer_start(&p, true, 10);
	ino = make_file(l.lower, "a");
	CHECK(fstat(l.upper, &before) == 0);
	CHECK(offer(&p, &l, DIRECTORY) == 1);
	expect_mode(&p, ino, 04640);
	expect_mode(&p, ino, 0660);
	CHECK(libfuse_gets_nothing(&p));

	CHECK(mode_of(l.lower, "a") == 0600 && mode_of(l.upper, "a") == 0660);
	CHECK(fstat(l.upper, &after) == 0);
	CHECK(!memcmp(&before.st_mtim, &after.st_mtim, sizeof(before.st_mtim)));
	CHECK(fchdir(l.upper) == 0);
	CHECK(getxattr("a", "trusted.cowfs.ino", &mark, sizeof(mark)) == sizeof(mark));
	CHECK(mark == ino);
	CHECK(getxattr("a", "trusted.cowfs.data", data, sizeof(data)) == 8 + 13);
	CHECK(!memcmp(data + 8, "of/template/a", 13));
	CHECK(fchdir(l.root_fd) == 0 && chdir("..") == 0);

	told = touch_take(&p.ch->touch, &count);
	CHECK(told && count == 1 && told[0].nodeid == ino && !told[0].unprimed);
	free(told);
	CHECK(!touch_take(&p.ch->touch, &count) && count == 0);
	peer_stop(&p);
	remove_layers(&l);
}

static void a_primed_answer_does_not_outlive_the_change(void)
{
	uint64_t evicted;
	struct fuse_entry_out entry = {.nodeid = 7};
	struct peer p;
	struct layers l;
	struct touched *told;
	uint32_t count;
	uint64_t ino;

	if (!privileged())
		return;
	make_layers(&l);
	peer_start(&p, true, 10);
	ino = make_file(l.lower, "a");
	CHECK(primed_add(&p.ch->primed, DIRECTORY, "a", 1, &entry, &evicted));
	offer(&p, &l, DIRECTORY);
	expect_mode(&p, ino, 0640);
	CHECK(!primed_take(&p.ch->primed, DIRECTORY, "a", 1, &entry));
	told = touch_take(&p.ch->touch, &count);
	CHECK(told && count == 1 && told[0].unprimed);
	free(told);
	peer_stop(&p);
	remove_layers(&l);
}

/* A file of the copy's own that shows the number of its name in the template: such as an ordinary user
 * can make. */
static uint64_t make_upper(struct layers *l, const char *name)
{
	uint64_t ino = make_file(l->lower, name);

	CHECK(linkat(l->lower, name, l->root_fd, "kept", 0) == 0);
	CHECK(unlinkat(l->lower, name, 0) == 0);
	CHECK(renameat(l->root_fd, "kept", l->upper, name) == 0);
	CHECK(linkat(l->upper, name, l->lower, name, 0) == 0);
	return ino;
}

/* ... and is its only name once the directory was offered. */
static void leave_upper(struct layers *l, const char *name)
{
	CHECK(unlinkat(l->lower, name, 0) == 0);
}

static void a_file_of_the_copy_is_changed_until_it_is_taken_back(void)
{
	struct peer p;
	struct layers l;
	uint64_t ino;

	make_layers(&l);
	peer_start(&p, true, 10);
	ino = make_upper(&l, "a");
	CHECK(offer(&p, &l, DIRECTORY) == 1);
	leave_upper(&l, "a");
	expect_mode(&p, ino, 0640);
	CHECK(mode_of(l.upper, "a") == 0640);

	touch_withdraw(&p.ch->touch, ino);
	expect_relayed(&p, ask_mode(&p, ino, 0600));
	CHECK(linkat(l.upper, "a", l.lower, "a", 0) == 0);
	CHECK(offer(&p, &l, DIRECTORY) == 1);
	leave_upper(&l, "a");
	expect_mode(&p, ino, 0600);
	touch_withdraw(&p.ch->touch, DIRECTORY);
	expect_relayed(&p, ask_mode(&p, ino, 0640));
	CHECK(mode_of(l.upper, "a") == 0600);
	peer_stop(&p);
	remove_layers(&l);
}

static void what_is_no_plain_change_is_relayed(void)
{
	struct fuse_setattr_in size = {.valid = FATTR_SIZE | FATTR_MODE, .mode = 0600};
	struct fuse_setattr_in nothing = {.valid = FATTR_KILL_SUIDGID};
	struct fuse_setattr_in group = {.valid = FATTR_GID, .gid = getgid()};
	struct peer p;
	struct layers l;
	uint64_t ino;

	make_layers(&l);
	peer_start(&p, true, 10);
	ino = make_upper(&l, "a");
	offer(&p, &l, DIRECTORY);
	leave_upper(&l, "a");
	expect_relayed(&p, ask(&p, FUSE_SETATTR, ino, &size, sizeof(size)));
	expect_relayed(&p, ask(&p, FUSE_SETATTR, ino, &nothing, sizeof(nothing)));
	expect_relayed(&p, ask_mode(&p, ino + 1000000, 0640));
	/* who may keep this setgid is not asked here */
	CHECK(fchmodat(l.upper, "a", 02640, 0) == 0);
	expect_relayed(&p, ask(&p, FUSE_SETATTR, ino, &group, sizeof(group)));
	CHECK(mode_of(l.upper, "a") == 02640);
	CHECK(fchmodat(l.upper, "a", 0600, 0) == 0);

	nodes_attach(&p.ch->nodes, ino, scratch_file(""), NODE_PRIVATE, READ_PASSTHROUGH, true, 0);
	expect_relayed(&p, ask_mode(&p, ino, 0640)); /* open for writing, passed through */
	nodes_forget(&p.ch->nodes, ino);
	discard(&p);
	p.next_unique |= WIRE_UNIQUE_RESEND;
	expect_relayed(&p, ask_mode(&p, ino, 0640));
	CHECK(mode_of(l.upper, "a") == 0600);
	peer_stop(&p);
	remove_layers(&l);
}

static void what_is_no_plain_file_is_relayed(void)
{
	struct peer p;
	struct layers l;
	uint64_t linked, covered, other, attributed;
	struct stat st;
	int fd;

	make_layers(&l);
	peer_start(&p, true, 10);
	linked = make_file(l.lower, "linked");
	CHECK(linkat(l.lower, "linked", l.lower, "second", 0) == 0);
	covered = make_file(l.lower, "covered");
	CHECK(symlinkat("/etc/passwd", l.upper, "covered") == 0);
	other = make_file(l.lower, "other");
	make_file(l.upper, "other");
	attributed = make_file(l.lower, "attributed");
	fd = openat(l.lower, "attributed", O_RDWR | O_CLOEXEC);
	fsetxattr(fd, "user.tag", "x", 1, 0);
	close(fd);
	CHECK(symlinkat("x", l.lower, "symlink") == 0);
	CHECK(fstatat(l.lower, "symlink", &st, AT_SYMLINK_NOFOLLOW) == 0);
	CHECK(offer(&p, &l, DIRECTORY) == 5);
	for (int again = 0; again < 2; again++) {
		expect_relayed(&p, ask_mode(&p, linked, 0640));
		expect_relayed(&p, ask_mode(&p, covered, 0640));
		expect_relayed(&p, ask_mode(&p, other, 0640));
		expect_relayed(&p, ask_mode(&p, attributed, 0640));
		expect_relayed(&p, ask_mode(&p, st.st_ino, 0640));
	}
	CHECK(mode_of(l.upper, "other") == 0600);
	CHECK(faccessat(l.upper, "linked", F_OK, 0) < 0);
	peer_stop(&p);
	remove_layers(&l);
}

static void the_question_for_capabilities_is_answered_when_there_are_none(void)
{
	static const char name[] = "security.capability", tag[] = "user.tag";
	struct {
		struct fuse_getxattr_in in;
		char name[sizeof(name)];
	} ask_for = {.in = {.size = 0}};
	struct peer p;
	struct layers l;
	uint64_t ino;

	make_layers(&l);
	peer_start(&p, true, 10);
	memcpy(ask_for.name, name, sizeof(name));
	ino = make_file(l.lower, "a");
	expect_relayed(&p, ask(&p, FUSE_GETXATTR, ino, &ask_for, sizeof(ask_for)));
	offer(&p, &l, DIRECTORY);
	expect_reply(&p, ask(&p, FUSE_GETXATTR, ino, &ask_for, sizeof(ask_for)), ENODATA, 0);
	memcpy(ask_for.name, tag, sizeof(tag));
	expect_relayed(&p, ask(&p, FUSE_GETXATTR, ino, &ask_for, sizeof(ask_for)));
	peer_stop(&p);
	remove_layers(&l);
}

static void what_was_seen_is_forgotten_when_the_file_is_taken_back(void)
{
	struct {
		struct fuse_getxattr_in in;
		char name[sizeof("security.capability")];
	} capability = {.name = "security.capability"};
	struct peer p;
	struct layers l;
	uint64_t ino;
	int fd;

	if (!privileged())
		return;
	make_layers(&l);
	peer_start(&p, true, 10);
	ino = make_file(l.lower, "a");
	offer(&p, &l, DIRECTORY);
	expect_reply(&p, ask(&p, FUSE_GETXATTR, ino, &capability, sizeof(capability)), ENODATA, 0);
	touch_withdraw(&p.ch->touch, ino);
	/* meanwhile it was copied up */
	make_file(l.upper, "a");
	fd = openat(l.upper, "a", O_RDWR | O_CLOEXEC);
	CHECK(fsetxattr(fd, "trusted.cowfs.ino", &ino, sizeof(ino), 0) == 0);
	close(fd);
	offer(&p, &l, DIRECTORY);
	expect_mode(&p, ino, 0640);
	CHECK(mode_of(l.upper, "a") == 0640);
	peer_stop(&p);
	remove_layers(&l);
}

/* Whether there is a clone of the file that nobody has asked for; waits for one if there should be. */
static uint64_t clone_ahead(struct peer *p, uint64_t nodeid, bool expected)
{
	struct touch_table *t = &p->ch->touch;
	struct stat st = {.st_ino = 0};

	for (int ms = 0; ms < (expected ? 10000 : 20) && !st.st_ino; ms++) {
		usleep(1000);
		pthread_mutex_lock(&t->stock.lock);
		for (int i = 0; i < STOCK_CLONES; i++)
			if (t->stock.clones[i].state == STOCK_READY &&
			    t->stock.clones[i].nodeid == nodeid)
				CHECK(fstat(t->stock.clones[i].fd, &st) == 0 && st.st_nlink == 0);
		pthread_mutex_unlock(&t->stock.lock);
	}
	return st.st_ino;
}

static void expect_order(const char *order, const char *listing, size_t listing_len)
{
	char name[2] = "";
	struct peer p;
	struct layers l;
	struct stat st;
	uint64_t inos[4], clone;

	if (!privileged())
		return;
	make_layers(&l);
	peer_start(&p, true, 10);
	for (int i = 0; i < 4; i++) {
		name[0] = order[i];
		inos[i] = make_file(l.lower, name);
	}
	CHECK(offer_listed(&p, &l, DIRECTORY, listing, listing_len) == 4);
	expect_mode(&p, inos[0], 0640);
	CHECK(!clone_ahead(&p, inos[1], false)); /* it may be the only one */
	expect_mode(&p, inos[1], 0640);
	clone = clone_ahead(&p, inos[2], true);
	CHECK(clone && clone_ahead(&p, inos[3], true));

	name[0] = order[2];
	CHECK(faccessat(l.upper, name, F_OK, 0) < 0);
	expect_mode(&p, inos[2], 0640);
	CHECK(fstatat(l.upper, name, &st, AT_SYMLINK_NOFOLLOW) == 0);
	CHECK(st.st_ino == clone && st.st_nlink == 1);
	/* what has a file of its own by now is not covered by a clone */
	touch_withdraw(&p.ch->touch, inos[3]);
	name[0] = order[3];
	make_file(l.upper, name);
	CHECK(offer_listed(&p, &l, DIRECTORY, listing, listing_len) == 4);
	expect_relayed(&p, ask_mode(&p, inos[3], 0640));
	CHECK(mode_of(l.upper, name) == 0600);
	peer_stop(&p);
	remove_layers(&l);
}

static void clones_are_made_ahead_in_the_order_of_names_and_of_the_listing(void)
{
	expect_order("abcd", "d\0b\0a\0c", 7);
	expect_order("dbac", "d\0gone\0b\0b\0a\0c", 14);
	expect_order("abcd", "", 0);
}

static void nobody_goes_ahead_of_who_has_no_order(void)
{
	struct peer p;
	struct layers l;
	uint64_t a, b, c, d;

	if (!privileged())
		return;
	make_layers(&l);
	peer_start(&p, true, 10);
	a = make_file(l.lower, "a");
	b = make_file(l.lower, "b");
	c = make_file(l.lower, "c");
	d = make_file(l.lower, "d");
	offer(&p, &l, DIRECTORY);
	expect_mode(&p, a, 0640);
	expect_mode(&p, c, 0640);
	CHECK(!clone_ahead(&p, b, false) && !clone_ahead(&p, d, false));
	expect_mode(&p, b, 0640);
	expect_mode(&p, d, 0640);
	peer_stop(&p);
	remove_layers(&l);
}

static void a_closed_channel_has_no_clones(void)
{
	struct peer p;
	struct layers l;
	uint64_t inos[3];
	int fd = -1;

	if (!privileged())
		return;
	make_layers(&l);
	peer_start(&p, true, 10);
	for (int i = 0; i < 3; i++)
		inos[i] = make_file(l.lower, (const char *[]){"a", "b", "c"}[i]);
	offer(&p, &l, DIRECTORY);
	expect_mode(&p, inos[0], 0640);
	expect_mode(&p, inos[1], 0640);
	CHECK(clone_ahead(&p, inos[2], true));
	for (int i = 0; i < STOCK_CLONES; i++)
		if (p.ch->touch.stock.clones[i].state == STOCK_READY)
			fd = p.ch->touch.stock.clones[i].fd;
	channel_close(p.ch);
	CHECK(fd >= 0 && fcntl(fd, F_GETFD) < 0);
	peer_stop(&p);
	remove_layers(&l);
}

static void the_oldest_directories_make_room(void)
{
	struct peer p;
	struct layers l;
	uint64_t ino;

	make_layers(&l);
	peer_start(&p, true, 10);
	ino = make_upper(&l, "a");
	CHECK(offer(&p, &l, DIRECTORY) == 1);
	leave_upper(&l, "a");
	for (uint64_t i = 1; i < TOUCH_MAX_DIRECTORIES; i++)
		CHECK(offer(&p, &l, DIRECTORY + i) == 0);
	expect_mode(&p, ino, 0640);
	CHECK(offer(&p, &l, DIRECTORY + TOUCH_MAX_DIRECTORIES) == 0);
	expect_relayed(&p, ask_mode(&p, ino, 0600));
	CHECK(p.ch->touch.files == 0 && p.ch->touch.directories == TOUCH_MAX_DIRECTORIES);
	peer_stop(&p);
	remove_layers(&l);
}

/* ---- all at once ------------------------------------------------------------------------------------------ */

struct python {
	struct peer *p;
	struct layers *l;
	uint64_t *inos;
	char listing[FILES * 5]; /* in the order in which the files are asked for */
	size_t listing_len;
	atomic_bool stop;
	_Atomic uint32_t told;
};

/* Learns, without a pause: a change that is about to tell must not be disturbed. */
static void *learner_main(void *arg)
{
	struct python *py = arg;

	while (!atomic_load(&py->stop)) {
		uint32_t count;

		free(touch_take(&py->p->ch->touch, &count));
		atomic_fetch_add(&py->told, count);
	}
	return NULL;
}

/* Offers, takes back, learns and answers, as Python does. */
static void *python_main(void *arg)
{
	struct python *py = arg;
	struct channel *ch = py->p->ch;
	struct message *m = malloc(sizeof(*m));
	unsigned round = 0;

	CHECK(m);
	while (!atomic_load(&py->stop)) {
		struct fuse_out_header reply = {.len = sizeof(reply), .error = -EPERM};
		struct touched *told;
		uint32_t count;
		ssize_t n;

		if (++round % 16 == 0)
			CHECK(offer_listed(py->p, py->l, DIRECTORY, py->listing,
					   py->listing_len) >= 0);
		touch_withdraw(&ch->touch, round % 400 ? py->inos[round % FILES] : DIRECTORY);
		pthread_mutex_lock(&ch->touch.lock);
		touch_withdraw(&ch->touch, py->inos[round % FILES]);
		pthread_mutex_unlock(&ch->touch.lock);
		told = touch_take(&ch->touch, &count);
		atomic_fetch_add(&py->told, count);
		free(told);
		while ((n = recv(ch->daemon_fd, m->bytes, sizeof(m->bytes), MSG_DONTWAIT)) > 0) {
			reply.unique = m->in.unique;
			CHECK(send(ch->daemon_fd, &reply, sizeof(reply), 0) == sizeof(reply));
		}
		channel_drain(ch);
	}
	free(m);
	return NULL;
}

static void changes_here_and_by_python_go_together(void)
{
	struct peer p;
	struct layers l;
	uint64_t inos[FILES];
	bool can = privileged();
	struct python py = {.p = &p, .l = &l, .inos = inos};
	pthread_t thread, learner;
	char name[16];
	uint32_t rest, in_upper = 0;

	make_layers(&l);
	peer_start(&p, true, 10);
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		inos[i] = make_file(l.lower, name);
		strcpy(py.listing + py.listing_len, name);
		py.listing_len += strlen(name) + 1;
	}
	CHECK(pthread_create(&thread, NULL, python_main, &py) == 0);
	CHECK(pthread_create(&learner, NULL, learner_main, &py) == 0);
	for (int i = 0; i < ROUNDS; i += 8) {
		for (int j = 0; j < 8; j++)
			ask_mode(&p, inos[(i + j) % FILES], 0600 | (i + j) % 8);
		for (int j = 0; j < 8; j++)
			CHECK(kernel_gets(&p)->len);
	}
	atomic_store(&py.stop, true);
	pthread_join(thread, NULL);
	pthread_join(learner, NULL);
	free(touch_take(&p.ch->touch, &rest));
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		in_upper += faccessat(l.upper, name, F_OK, 0) == 0;
		CHECK(mode_of(l.lower, name) == 0600);
	}
	CHECK(in_upper == py.told + rest);
	CHECK(can || !in_upper);
	peer_stop(&p);
	remove_layers(&l);
}

int main(void)
{
	RUN(a_file_of_the_template_is_copied_up_and_changed);
	RUN(a_primed_answer_does_not_outlive_the_change);
	RUN(a_file_of_the_copy_is_changed_until_it_is_taken_back);
	RUN(what_is_no_plain_change_is_relayed);
	RUN(what_is_no_plain_file_is_relayed);
	RUN(the_question_for_capabilities_is_answered_when_there_are_none);
	RUN(what_was_seen_is_forgotten_when_the_file_is_taken_back);
	RUN(clones_are_made_ahead_in_the_order_of_names_and_of_the_listing);
	RUN(nobody_goes_ahead_of_who_has_no_order);
	RUN(a_closed_channel_has_no_clones);
	RUN(the_oldest_directories_make_room);
	RUN(changes_here_and_by_python_go_together);
	return 0;
}
