/* Preloaded into a process and its children: whoever looks up a host or sends beyond this machine's own sockets fails,
 * and is written down in the file that NO_NETWORK_LOG names. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void write_down(const char* what, const char* whom) {
  char line[512];
  const char* path = getenv("NO_NETWORK_LOG");
  const int file = path == NULL ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (file < 0) abort();
  const int length = snprintf(line, sizeof line, "%s %s\n", what, whom == NULL ? "-" : whom);
  if (write(file, line, (size_t)length) != length) abort();
  close(file);
}

int getaddrinfo(const char* node, const char* service, const struct addrinfo* hints, struct addrinfo** found) {
  struct in6_addr number;
  if (node != NULL && (inet_pton(AF_INET, node, &number) == 1 || inet_pton(AF_INET6, node, &number) == 1)) {
    // A number is no host: nobody is asked.
    int (*real)(const char*, const char*, const struct addrinfo*, struct addrinfo**) = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(node, service, hints, found);
  }
  write_down("getaddrinfo", node);
  return EAI_FAIL;
}

struct hostent* gethostbyname(const char* name) {
  write_down("gethostbyname", name);
  return NULL;
}

static int goes_out(const struct sockaddr* to) {
  return to != NULL && (to->sa_family == AF_INET || to->sa_family == AF_INET6);
}

int connect(int s, const struct sockaddr* to, socklen_t length) {
  if (goes_out(to)) {
    write_down("connect", NULL);
    errno = EACCES;
    return -1;
  }
  int (*real)(int, const struct sockaddr*, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return real(s, to, length);
}

ssize_t sendto(int s, const void* data, size_t size, int flags, const struct sockaddr* to, socklen_t length) {
  if (goes_out(to)) {
    write_down("sendto", NULL);
    errno = EACCES;
    return -1;
  }
  ssize_t (*real)(int, const void*, size_t, int, const struct sockaddr*, socklen_t) = dlsym(RTLD_NEXT, "sendto");
  return real(s, data, size, flags, to, length);
}
