#include "server/notify.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "temporary_directory.h"

namespace tidemark::server {
namespace {

TEST(Notify, TheSupervisorGetsOneDatagram) {
  TemporaryDirectory top;
  const std::string path = top / "notify";
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_TRUE(notify_socket(path, "READY=1"));
  char buffer[64];
  const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
  EXPECT_EQ(std::string(buffer, static_cast<std::size_t>(n)), "READY=1");
  ::close(fd);
}

TEST(Notify, NobodyListeningIsNoTrouble) {
  EXPECT_FALSE(notify_socket("", "READY=1"));
  EXPECT_FALSE(notify_socket("/nonexistent/notify", "READY=1"));
  EXPECT_FALSE(notify_socket(std::string(500, 'x'), "READY=1"));
}

}  // namespace
}  // namespace tidemark::server
