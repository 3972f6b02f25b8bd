package demo;

/** A second interface on the same port: one process, several services. */
public interface StockService {
    double price(String symbol);

    boolean reserve(String symbol, int amount);
}
