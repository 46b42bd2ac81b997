/* Does nothing until it is told to stop, and reaps: the first process of a pod, or of a process namespace. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signal) { _exit(0); }
static void reap(int signal) {
	while (waitpid(-1, 0, WNOHANG) > 0);
}

int main(void) {
	signal(SIGINT, stop);
	signal(SIGTERM, stop);
	signal(SIGCHLD, reap);
	for (;;) pause();
}
