/* Clones that are made ahead: what is taken, waited for, and let go. */
#include <fcntl.h>
#include <unistd.h>

#include "peer.h"
#include "stock.h"

static bool is_open(int fd)
{
	return fcntl(fd, F_GETFD) >= 0;
}

/* Make what is planned first, which has to be this. */
static int made(struct stock *s, uint64_t nodeid)
{
	struct stock_clone *clone = stock_begin(s);
	int fd = scratch_file("");

	CHECK(clone && clone->nodeid == nodeid);
	stock_made(s, clone, fd);
	return fd;
}

static void what_is_ready_is_given_away_once(void)
{
	struct stock s;
	int fd;

	stock_init(&s);
	CHECK(!stock_begin(&s) && stock_take(&s, 7) == -1);
	stock_plan(&s, 7, "a");
	stock_plan(&s, 8, "b");
	stock_plan(&s, 7, "a");
	CHECK(!stock_is_ready(&s, 7));
	fd = made(&s, 7);
	CHECK(stock_is_ready(&s, 7) && !stock_is_ready(&s, 8));
	CHECK(stock_take(&s, 7) == fd && is_open(fd));
	CHECK(stock_take(&s, 7) == -1);
	close(fd);
	fd = made(&s, 8);
	CHECK(!stock_begin(&s));
	stock_destroy(&s);
	CHECK(!is_open(fd));
}

static void what_was_asked_for_is_not_made_any_more(void)
{
	struct stock s;

	stock_init(&s);
	stock_plan(&s, 7, "a");
	CHECK(stock_take(&s, 7) == -1);
	CHECK(!stock_begin(&s));
	stock_destroy(&s);
}

static void the_oldest_makes_room(void)
{
	struct stock s;
	int fds[STOCK_CLONES];

	stock_init(&s);
	for (int i = 0; i < STOCK_CLONES; i++)
		stock_plan(&s, 10 + i, "a");
	stock_plan(&s, 99, "no room for what is planned");
	for (int i = 0; i < STOCK_CLONES; i++)
		fds[i] = made(&s, 10 + i);
	CHECK(!stock_begin(&s));
	stock_plan(&s, 100, "b");
	CHECK(!is_open(fds[0]) && is_open(fds[1]));
	CHECK(stock_take(&s, 10) == -1 && stock_take(&s, 11) == fds[1]);
	close(fds[1]);
	made(&s, 100);
	stock_destroy(&s);
}

static void what_a_walk_has_left_goes(void)
{
	struct stock s;
	int fd;

	stock_init(&s);
	stock_plan(&s, 7, "a");
	fd = made(&s, 7);
	stock_plan(&s, 8, "b");
	stock_drop_idle(&s);
	CHECK(is_open(fd) && stock_is_ready(&s, 7)); /* it was used since */
	stock_drop_idle(&s);
	CHECK(!is_open(fd) && stock_take(&s, 7) == -1);
	fd = made(&s, 8); /* that was still to be made */
	stock_drop_idle(&s);
	CHECK(!is_open(fd));
	stock_destroy(&s);
}

struct taker {
	struct stock *s;
	int fd;
	atomic_bool taken;
};

static void *taker_main(void *arg)
{
	struct taker *t = arg;

	t->fd = stock_take(t->s, 7);
	atomic_store(&t->taken, true);
	return NULL;
}

static void who_comes_while_it_is_made_waits(bool succeeds)
{
	struct stock s;
	struct taker t = {.s = &s};
	struct stock_clone *clone;
	int fd = succeeds ? scratch_file("") : -1;
	pthread_t thread;

	stock_init(&s);
	stock_plan(&s, 7, "a");
	clone = stock_begin(&s);
	CHECK(clone && pthread_create(&thread, NULL, taker_main, &t) == 0);
	usleep(20000);
	CHECK(!atomic_load(&t.taken));
	stock_made(&s, clone, fd);
	pthread_join(thread, NULL);
	CHECK(t.fd == fd && !stock_is_ready(&s, 7));
	if (fd >= 0)
		close(fd);
	stock_destroy(&s);
}

static void who_comes_while_it_is_made_gets_it(void)
{
	who_comes_while_it_is_made_waits(true);
}

static void who_waits_for_what_cannot_be_made_goes_on(void)
{
	who_comes_while_it_is_made_waits(false);
}

int main(void)
{
	RUN(what_is_ready_is_given_away_once);
	RUN(what_was_asked_for_is_not_made_any_more);
	RUN(the_oldest_makes_room);
	RUN(what_a_walk_has_left_goes);
	RUN(who_comes_while_it_is_made_gets_it);
	RUN(who_waits_for_what_cannot_be_made_goes_on);
	return 0;
}
