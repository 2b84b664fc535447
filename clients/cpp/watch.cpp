// Print a line of JSON for each frame of a deblurd daemon, and for each change of the daemon's state.
//
// SPDX-License-Identifier: Apache-2.0
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "deblurd.hpp"

constexpr auto usage =
    "usage: watch ENDPOINT [STREAM...] [--mode newest|paced|shared] [--control ENDPOINT]\n"
    "             [--keys SECRET_FILE --server PUBLIC_FILE] [--on-lost wait|throw]";

int main(int argc, char** argv) try {
    std::vector<std::string> names;
    std::map<std::string, std::string> given{
        {"--mode", "newest"}, {"--control", ""}, {"--keys", ""}, {"--server", ""}, {"--on-lost", "wait"}};
    for (int at = 1; at < argc; ++at) {
        const std::string word = argv[at];
        if (word[0] != '-')
            names.push_back(word);
        else if (given.count(word) != 0 && ++at < argc)
            given[word] = argv[at];
        else
            throw std::invalid_argument(usage);
    }
    const std::map<std::string, deblurd::Mode> modes{
        {"newest", deblurd::Mode::newest}, {"paced", deblurd::Mode::paced}, {"shared", deblurd::Mode::shared}};
    if (names.empty() || modes.count(given["--mode"]) == 0 || given["--keys"].empty() != given["--server"].empty())
        throw std::invalid_argument(usage);
    deblurd::Options options;
    options.mode = modes.at(given["--mode"]);
    options.control = given["--control"];
    options.throw_when_lost = given["--on-lost"] == "throw";
    if (!given["--keys"].empty()) options.keys = deblurd::Keys::load(given["--keys"], given["--server"]);
    deblurd::Subscriber subscriber(names[0], {names.begin() + 1, names.end()}, options);

    auto state = deblurd::State::connecting;
    for (;;) {
        std::optional<deblurd::Frame> frame;
        try {
            frame = subscriber.receive(std::chrono::milliseconds(100));
        } catch (const deblurd::VersionError&) {
            throw;
        } catch (const deblurd::WireError& error) {
            std::cerr << "watch: " << error.what() << std::endl;  // the next message may be a good one
        }
        if (subscriber.state() != state) {
            state = subscriber.state();
            const auto name = state == deblurd::State::live ? "live" : "lost";
            std::cout << deblurd::json{{"state", name}, {"run_id", subscriber.run_id()}} << std::endl;
        }
        if (!frame) continue;
        const auto sum = std::accumulate(frame->pixels, frame->pixels + frame->size, std::uint64_t{0});
        const auto age_ms = std::chrono::duration<double, std::milli>(frame->age()).count();
        std::cout << deblurd::json{{"stream", frame->stream}, {"seq", frame->seq}, {"width", frame->width},
                                   {"height", frame->height}, {"pixel_format", frame->pixel_format},
                                   {"encoding", frame->encoding}, {"sum", sum}, {"age_ms", age_ms}}
                  << std::endl;
    }
} catch (const std::exception& error) {
    std::cerr << "watch: " << error.what() << std::endl;
    return EXIT_FAILURE;
}
