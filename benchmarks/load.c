/* The loads of benchmarks/side_by_side.py that iperf3 has none for; compiled when it runs.
 *
 *   load serve PORT              echo what comes, on any number of connections
 *   load trips ADDR PORT COUNT   round trips of one byte: µs, p50 and p99
 *   load opens ADDR PORT SECONDS connect, send a byte, receive one, close: per second
 *   load idle ADDR PORT COUNT    open connections, a byte to and fro on each; then wait for EOF
 *   load first ADDR PORT         connect as soon as it can be done, a byte to and fro: the instant
 *   load flood ADDR PORT LENGTH SECONDS   UDP datagrams as fast as they go
 *   load sink PORT [ADDR]                 count UDP datagrams per second; ask `pour` at ADDR for them
 *   load pour PORT LENGTH SECONDS         send datagrams to whoever asks
 *
 * The result is one line of numbers on stdout.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* An address of either family. */
union address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static socklen_t size_of(const union address *a)
{
	return a->any.sa_family == AF_INET6 ? sizeof a->v6 : sizeof a->v4;
}

static union address at(const char *addr, const char *port)
{
	union address a = { .v6 = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(port)) } };
	if (inet_pton(AF_INET6, addr, &a.v6.sin6_addr) == 1)
		return a;
	a.v4 = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	if (inet_pton(AF_INET, addr, &a.v4.sin_addr) != 1)
		fail(addr);
	return a;
}

/* For both families, where the host has both. */
static int bound(int type, const char *port)
{
	int one = 1, fd = socket(AF_INET6, type, 0);
	union address a = at(fd < 0 ? "0.0.0.0" : "::", port);
	if (fd < 0)
		fd = socket(AF_INET, type, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (fd < 0 || bind(fd, &a.any, size_of(&a)))
		fail(port);
	return fd;
}

static int tcp(union address *a)
{
	int one = 1, fd = socket(a->any.sa_family, SOCK_STREAM, 0);
	if (fd < 0)
		fail("socket");
	if (connect(fd, &a->any, size_of(a))) {
		close(fd);
		return -1;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static void trip(int fd)
{
	char c = 'x';
	if (write(fd, &c, 1) != 1 || read(fd, &c, 1) != 1)
		fail("round trip");
}

static void serve(char **v)
{
	char octets[65536];
	struct epoll_event e = { .events = EPOLLIN }, ready[256];
	int one = 1, listener = bound(SOCK_STREAM, v[2]), ep = epoll_create1(0);
	listen(listener, 4096);
	e.data.fd = listener;
	epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
	for (;;) {
		int n = epoll_wait(ep, ready, 256, -1);
		for (int i = 0; i < n; i++) {
			int fd = ready[i].data.fd;
			if (fd == listener) {
				fd = accept(listener, NULL, NULL);
				if (fd < 0)
					continue;
				setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				e.data.fd = fd;
				epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
				continue;
			}
			ssize_t got = read(fd, octets, sizeof octets);
			if (got <= 0 || write(fd, octets, got) != got)
				close(fd);
		}
	}
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static int trips(char **v)
{
	union address a = at(v[2], v[3]);
	int count = atoi(v[4]), fd = tcp(&a);
	double *took = malloc(count * sizeof *took);
	if (fd < 0)
		fail("connect");
	for (int i = 0; i < 200; i++)
		trip(fd);
	for (int i = 0; i < count; i++) {
		double begun = now();
		trip(fd);
		took[i] = now() - begun;
	}
	qsort(took, count, sizeof *took, by_size);
	printf("%.2f %.2f\n", took[count / 2] * 1e6, took[count * 99 / 100] * 1e6);
	return 0;
}

static int opens(char **v)
{
	union address a = at(v[2], v[3]);
	double begun = now(), seconds = atof(v[4]);
	long count = 0;
	while (now() - begun < seconds) {
		int fd = tcp(&a);
		if (fd < 0)
			fail("connect");
		trip(fd);
		close(fd);
		count++;
	}
	printf("%.1f\n", count / (now() - begun));
	return 0;
}

static int idle(char **v)
{
	union address a = at(v[2], v[3]);
	char c;
	for (int i = atoi(v[4]); i > 0; i--) {
		int fd = tcp(&a);
		if (fd < 0)
			fail("connect");
		trip(fd);
	}
	puts("ready");
	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
	return 0;
}

static int first(char **v)
{
	union address a = at(v[2], v[3]);
	double until = now() + 10;
	int fd;
	while ((fd = tcp(&a)) < 0) {
		if (now() > until)
			fail("connect");
		usleep(500);
	}
	trip(fd);
	printf("%.6f\n", now());
	return 0;
}

static int flood(int fd, union address a, int length, double seconds)
{
	char octets[65536] = { 0 };
	double until = now() + seconds;
	long count = 0;
	if (connect(fd, &a.any, size_of(&a)))
		fail("connect");
	while (now() < until)
		for (int i = 0; i < 16; i++)
			count += send(fd, octets, length, 0) == length;
	printf("%.1f\n", count / seconds);
	return 0;
}

static int sink(char **v)
{
	int asks = v[3] != NULL;
	union address a = at(asks ? v[3] : "::", v[2]);
	int fd = asks ? socket(a.any.sa_family, SOCK_DGRAM, 0) : bound(SOCK_DGRAM, v[2]);
	struct timeval quiet = { .tv_usec = 300000 };
	int queue = 4 << 20;
	double begun = 0, last = 0;
	long count = 0;
	char octets[65536];
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &queue, sizeof queue);
	if (asks)
		sendto(fd, "?", 1, 0, &a.any, size_of(&a));
	for (;;) {
		ssize_t got = recv(fd, octets, sizeof octets, 0);
		if (got < 0 && count)
			break; /* quiet for a while: the flood is over */
		if (got < 0)
			fail("nothing came");
		last = now();
		if (!count++) {
			begun = last;
			setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &quiet, sizeof quiet);
		}
	}
	printf("%.1f\n", count / (last - begun + 1e-9));
	return 0;
}

static int pour(char **v)
{
	int fd = bound(SOCK_DGRAM, v[2]);
	union address a;
	socklen_t n = sizeof a;
	char c;
	if (recvfrom(fd, &c, 1, 0, &a.any, &n) < 0)
		fail("recvfrom");
	return flood(fd, a, atoi(v[3]), atof(v[4]));
}

int main(int n, char **v)
{
	struct rlimit files;
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	if (n == 3 && !strcmp(v[1], "serve"))
		serve(v);
	if (n == 5 && !strcmp(v[1], "trips"))
		return trips(v);
	if (n == 5 && !strcmp(v[1], "opens"))
		return opens(v);
	if (n == 5 && !strcmp(v[1], "idle"))
		return idle(v);
	if (n == 4 && !strcmp(v[1], "first"))
		return first(v);
	if (n == 6 && !strcmp(v[1], "flood")) {
		union address a = at(v[2], v[3]);
		return flood(socket(a.any.sa_family, SOCK_DGRAM, 0), a, atoi(v[4]), atof(v[5]));
	}
	if ((n == 3 || n == 4) && !strcmp(v[1], "sink"))
		return sink(v);
	if (n == 5 && !strcmp(v[1], "pour"))
		return pour(v);
	fprintf(stderr, "load: see the head of load.c\n");
	return 2;
}
